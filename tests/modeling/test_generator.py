"""The generator's parts that differ from the Model Garden's: FPN, heads, anchors, detections."""

import numpy as np
import pytest
import tensorflow as tf

from gan_mrcnn import configs
from gan_mrcnn.modeling import fpn, generator, heads


def make_config(**changes):
    config = configs.Generator(num_classes=3, input_size=[64, 128, 3])
    config.override(
        {
            'backbone': {'resnet': {'model_id': 18}},
            'decoder': {'fpn': {'num_filters': 32}},
            'rpn_head': {'num_filters': 32},
            'detection_head': {'fc_dims': 64},
            'mask_head': {'num_convs': 1, 'num_filters': 32},
            'roi_generator': {'num_proposals': 20, 'test_num_proposals': 20},
            'detection_generator': {'max_num_detections': 7, 'pre_nms_score_threshold': 0.0},
            **changes,
        }
    )
    return config


def norms_of(model):
    kinds = (tf.keras.layers.BatchNormalization, tf.keras.layers.GroupNormalization)
    parts = [model.decoder, model.rpn_head, model.detection_head[0], model.mask_head]
    return {type(x).__name__ for part in parts for x in part.submodules if isinstance(x, kinds)}


@pytest.mark.parametrize(
    'head_norm, wanted',
    [
        ('none', set()),
        ('group_norm', {'GroupNormalization'}),
        ('batch_norm', {'BatchNormalization'}),
    ],
)
def test_normalization_of_fpn_and_heads_is_what_was_asked(head_norm, wanted):
    found = norms_of(generator.build_generator(make_config(head_norm=head_norm)))
    assert {name.replace('Sync', '') for name in found} == wanted


def test_initial_weights_are_the_baselines():
    tf.keras.utils.set_random_seed(0)
    model = generator.build_generator(make_config())
    kernels = {
        variable.name.split('/')[-2]: variable.numpy()
        for variable in model.trainable_variables
        if variable.shape.rank > 1
    }
    for name in ('rpn-conv_0', 'rpn-scores', 'rpn-boxes', 'detection-scores'):
        assert np.std(kernels[name]) == pytest.approx(0.01, rel=0.2), name
    assert np.std(kernels['mask-logits']) == pytest.approx(0.001, rel=0.2)
    # kaiming_uniform_ with a=1: variance 1 / fan_in, and not more than sqrt(3 / fan_in).
    fan_in = 7 * 7 * 32
    assert np.std(kernels['detection-fc_0']) == pytest.approx(fan_in**-0.5, rel=0.02)
    assert np.abs(kernels['detection-fc_0']).max() <= (3 / fan_in) ** 0.5


def test_fpn_is_lateral_plus_upsampled_and_p6_every_second_pixel_of_p5():
    specs = {level: [None, 64 >> int(level), 128 >> int(level), 8] for level in '2345'}
    pyramid = fpn.FPN({k: tf.TensorShape(v) for k, v in specs.items()}, num_filters=4)
    rng = np.random.default_rng(0)
    inputs = {k: rng.normal(size=[1, *v[1:]]).astype(np.float32) for k, v in specs.items()}
    outputs = pyramid(inputs)

    def conv(x, name):
        kernel, bias = pyramid.get_layer(name).get_weights()
        return tf.nn.conv2d(x, kernel, 1, 'SAME').numpy() + bias

    top_down = None
    for level in '5432':
        lateral = conv(inputs[level], f'lateral_{level}')
        if top_down is not None:
            lateral = lateral + top_down.repeat(2, axis=1).repeat(2, axis=2)
        top_down = lateral
        np.testing.assert_allclose(outputs[level], conv(top_down, f'output_{level}'), atol=1e-4)
    np.testing.assert_array_equal(outputs['6'], outputs['5'][:, ::2, ::2])


def test_detections_lie_inside_the_image_best_first():
    tf.keras.utils.set_random_seed(0)
    model = generator.build_generator(make_config())
    image_shape = tf.constant([[50.0, 100.0], [64.0, 128.0]])
    images = tf.random.stateless_normal([2, 64, 128, 3], [1, 2])
    outputs = model(images, image_shape=image_shape, training=False)
    boxes, scores = outputs['detection_boxes'].numpy(), outputs['detection_scores'].numpy()
    assert boxes.shape == (2, 7, 4) and outputs['detection_masks'].shape == (2, 7, 28, 28)
    assert (np.diff(scores, axis=1) <= 0).all()
    for b, (height, width) in enumerate(image_shape.numpy()):
        assert (boxes[b] >= 0).all()
        assert (boxes[b, :, 2] <= height).all() and (boxes[b, :, 3] <= width).all()
    masks = outputs['detection_masks'].numpy()
    assert ((masks >= 0) & (masks <= 1)).all()


def test_masks_are_those_of_the_detections_and_zero_behind_them():
    tf.keras.utils.set_random_seed(0)
    changes = {'max_num_detections': 40, 'pre_nms_score_threshold': 0.34, 'nms_iou_threshold': 0.3}
    model = generator.build_generator(make_config(detection_generator=changes))
    images = tf.random.stateless_normal([2, 64, 128, 3], [1, 2])
    shapes = tf.constant([[64.0, 128.0], [20.0, 30.0]])
    outputs = model(images, image_shape=shapes, training=False)
    # The mask head on every row, padding too.
    features = model.mask_roi_aligner(
        outputs['decoder_features'], outputs['detection_boxes'], training=True
    )
    wanted = tf.sigmoid(model.mask_head([features, outputs['detection_classes']])).numpy()
    counts = outputs['num_detections'].numpy()
    assert counts[0] != counts[1] and (counts < 40).all() and counts.max() > 0
    for b, count in enumerate(counts):
        masks = outputs['detection_masks'][b].numpy()
        np.testing.assert_allclose(masks[:count], wanted[b, :count], atol=1e-5)
        assert not masks[count:].any()


def test_unknown_normalization_is_refused():
    with pytest.raises(ValueError, match='batch'):
        heads.make_norm('batch', 'x')
