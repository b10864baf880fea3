# SPDX-License-Identifier: Apache-2.0
"""From TFRecords to batches: decoding, the paper's input sizes, anchor and mask targets.

Decoding is the Model Garden's, but for the masks. Scaling differs from its parser, which draws a
scale of the whole padded canvas: here the shorter side has a length in pixels, drawn from a range
in training and fixed in testing (paper, sections 4.3-4.6). Every random draw is a function of the
run's seed and of the example's number in the run, so that a resumed run sees what an uninterrupted
one would have.

All images of a training batch lie the same way, wide or upright, on a canvas for those: one canvas
for both would be up to twice as large, and the rest of it padding. With quarter turns every image
takes turns on both.

Shapes: H, W the padded input, M ground-truth objects per image at most, S x S the cells of a mask.
"""

import functools
from typing import Optional

import tensorflow as tf
from official.vision.dataloaders import tf_example_decoder
from official.vision.ops import anchor, box_ops, preprocess_ops

from gan_mrcnn import configs
from gan_mrcnn.data import anchor_targets, augment, geometric
from gan_mrcnn.data.records import mask_crops, records
from gan_mrcnn.utils.cores import num_cores

# Draws that came later have a number each, so that the earlier ones stay as they are.
_STAIN, _TURN, _SCALE, _WINDOW, _COPIED, _OTHER = range(6)


class Parser:
    """Turns decoded examples into what the network and its losses take."""

    def __init__(
        self,
        model: configs.Generator,
        parser: configs.Parser,
        seed: int,
        canvas: Optional[tuple[int, int]] = None,
    ):
        """Makes a parser for one canvas.

        Args:
          model: gives anchors and input size.
          parser: the rest.
          seed: the run's.
          canvas: height and width of the padded input in pixels, see `training_canvases`; None is
            the model's input size, which takes images of either way.
        """
        self._size = list(canvas or model.input_size[:2])
        self._config = parser
        self._seed = seed
        self._anchors = anchor.build_anchor_generator(
            model.min_level,
            model.max_level,
            model.anchor.num_scales,
            model.anchor.aspect_ratios,
            model.anchor.anchor_size,
        )(self._size)

    def resize(self, image: tf.Tensor, short_side: tf.Tensor):
        """Normalizes, scales so that the shorter side fits `short_side`, and pads.

        Args:
          image: [h, w, 3] uint8.
          short_side: scalar, pixels.

        Returns:
          The [H, W, 3] float32 image and the Model Garden's `image_info` [4, 2]: size, scaled size,
          scale and offset (here 0), each as y, x.
        """
        size = tf.cast(tf.shape(image)[:2], tf.float32)
        scale = tf.minimum(
            tf.cast(short_side, tf.float32) / tf.reduce_min(size),
            tf.reduce_min(tf.constant(self._size, tf.float32) / size),
        )
        # A strip of 1 x 5000 pixels keeps one.
        scaled_size = tf.clip_by_value(
            tf.round(size * scale), 1.0, tf.constant(self._size, tf.float32)
        )
        image = _scale(tf.cast(image, tf.float32), tf.cast(scaled_size, tf.int32))
        image = _normalize_and_pad(image, *self._size)
        info = tf.stack([size, scaled_size, scaled_size / size, tf.zeros(2)])
        return image, info

    def _resize_and_cut(self, image, short_side, seed):
        """As `resize`, times a factor that is drawn; shows a window of what the canvas cannot hold.

        The second row of `image_info` is the size of what is shown, the last one where the window
        lies in the scaled image, whole pixels.
        """
        config, canvas = self._config, tf.constant(self._size, tf.float32)
        factor = tf.random.stateless_uniform(
            [], tf.random.fold_in(seed, _SCALE), config.aug_scale_min, config.aug_scale_max
        )
        size = tf.cast(tf.shape(image)[:2], tf.float32)
        fitting = tf.minimum(
            tf.cast(short_side, tf.float32) / tf.reduce_min(size), tf.reduce_min(canvas / size)
        )
        scaled_size = tf.maximum(tf.round(size * fitting * factor), 1.0)
        shown = tf.minimum(scaled_size, canvas)
        draws = tf.random.stateless_uniform([2], tf.random.fold_in(seed, _WINDOW))
        offset = tf.floor(draws * (scaled_size - shown + 1.0))
        image = _scale(tf.cast(image, tf.float32), tf.cast(scaled_size, tf.int32))
        begin = tf.concat([tf.cast(offset, tf.int32), [0]], axis=0)
        image = tf.slice(image, begin, tf.concat([tf.cast(shown, tf.int32), [3]], axis=0))
        info = tf.stack([size, shown, scaled_size / size, offset])
        return _normalize_and_pad(image, *self._size), info

    def parse_train(self, data, number: tf.Tensor, other=None):
        """One training example.

        Args:
          data: what `decode` gives.
          number: scalar int64, of this example in the run.
          other: as `data`, the example that objects are copied from, with `aug_copy_paste`.

        Returns:
          The image and its labels: `image_info`, `source_id`, `sampling_seed`, RPN targets by
          level, `gt_boxes` [M, 4] and `gt_classes` [M] padded with -1, and `gt_masks` [M, S, S] as
          in the record, padded with 0: as floats they would be as many bytes as the image.
        """
        config = self._config
        seed = tf.stack([tf.cast(self._seed, tf.int64), number])
        seeds = tf.random.split(seed, 7)
        image, info, *objects = self._augment(data, seed)
        if other is not None:
            image, objects = self._copy_paste(image, info, objects, other, seed)
        boxes, classes, masks = objects
        score_targets, box_targets = self._label_anchors(boxes, info[1], seeds[3])
        pad = lambda x, value=-1: preprocess_ops.clip_or_pad_to_fixed_size(  # noqa: E731
            x, config.max_num_instances, value
        )
        return image, {
            'image_info': info,
            'source_id': _image_id(data),
            'sampling_seed': tf.cast(seeds[4], tf.int32),
            'rpn_score_targets': score_targets,
            'rpn_box_targets': box_targets,
            'gt_boxes': pad(boxes),
            'gt_classes': pad(tf.cast(classes, tf.int32)),
            'gt_masks': pad(masks, 0),
        }

    def _augment(self, data, seed):
        """The image on its canvas, `image_info`, and boxes in its pixels, classes and masks."""
        config, seeds = self._config, tf.random.split(seed, 7)
        kept = self._choose_objects(data, seeds[5])
        boxes, classes, masks = (
            tf.gather(data[f'groundtruth_{name}'], kept)
            for name in ('boxes', 'classes', 'mask_crops')
        )
        image = data['image']
        if config.aug_stain:
            image = augment.stain(image, config.aug_stain, tf.random.fold_in(seed, _STAIN))
        if config.aug_photometric:
            image = augment.distort(image, seeds[6])
        image, boxes, masks = self._flip(image, boxes, masks, seeds)
        if config.aug_quarter_turns:
            turns = self._draw_turns(tf.shape(image), tf.random.fold_in(seed, _TURN))
            image, boxes, masks = geometric.turn(image, boxes, masks, turns)
        low, high = config.train_short_side
        short_side = tf.random.stateless_uniform([], seeds[2], low, high + 1, tf.int32)
        if (config.aug_scale_min, config.aug_scale_max) == (1.0, 1.0):
            image, info = self.resize(image, short_side)
            return image, info, box_ops.denormalize_boxes(boxes, info[1]), classes, masks
        image, info = self._resize_and_cut(image, short_side, seed)
        scaled_size = tf.round(info[0] * info[2])
        boxes = box_ops.denormalize_boxes(boxes, scaled_size) - tf.tile(info[3], [2])
        boxes, masks, is_kept = geometric.cut(boxes, masks, info[1])
        return image, info, *(tf.boolean_mask(x, is_kept) for x in (boxes, classes, masks))

    def _copy_paste(self, image, info, objects, other, seed):
        """Image and objects with some of `other`'s, which is augmented by draws of its own.

        An object of `other` that lies where this image has padding is cut or not copied, as by a
        window. No more are copied than there is room for in `max_num_instances`.
        """
        other_image, _, *copied = self._augment(other, tf.random.fold_in(seed, _OTHER))
        boxes, classes, masks = copied
        boxes, masks, is_shown = geometric.cut(boxes, masks, info[1])
        draws = tf.random.stateless_uniform(tf.shape(is_shown), tf.random.fold_in(seed, _COPIED))
        chosen = tf.where(is_shown & (draws < self._config.aug_copy_paste))[:, 0]
        chosen = chosen[: self._config.max_num_instances - tf.shape(objects[0])[0]]
        copied = [tf.gather(x, chosen) for x in (boxes, classes, masks)]
        boxes, classes, masks = objects
        image, boxes, masks, is_kept = geometric.paste(
            image, boxes, masks, other_image, copied[0], copied[2], info[1]
        )
        left = (tf.boolean_mask(x, is_kept) for x in (boxes, classes, masks))
        return image, [tf.concat(pair, axis=0) for pair in zip(left, copied)]

    def parse_eval(self, data):
        """One test example: the image, `image_info` and `source_id`; ground truth stays on disk."""
        image, info = self.resize(data['image'], self._config.test_short_side)
        return image, {'image_info': info, 'source_id': _image_id(data)}

    def _choose_objects(self, data, seed):
        """Indices of what is learnt: no crowds, and of too many objects a random part.

        Which ones is drawn for every example of the run anew. Always the same ones, such as the
        first, would keep the others from ever being learnt.
        """
        kept = tf.where(tf.logical_not(data['groundtruth_is_crowd']))[:, 0]
        shuffled = tf.random.experimental.stateless_shuffle(kept, seed)
        return tf.sort(shuffled[: self._config.max_num_instances])

    def _label_anchors(self, boxes, image_size, seed):
        """Score and box targets of the RPN by level; `boxes` [N, 4] in pixels of the input."""
        config = self._config
        return anchor_targets.AnchorLabeler(
            seed,
            config.rpn_batch_size_per_im,
            config.rpn_fg_fraction,
            match_threshold=config.rpn_match_threshold,
            unmatched_threshold=config.rpn_unmatched_threshold,
            image_size=image_size,
        ).label_anchors(self._anchors, boxes)

    def _flip(self, image, boxes, masks, seeds):
        for axis, wanted, seed in (
            (1, self._config.aug_rand_hflip, seeds[0]),
            (0, self._config.aug_rand_vflip, seeds[1]),
        ):
            if not wanted:
                continue
            flip = tf.random.stateless_uniform([], seed) < 0.5
            image = _reverse_if(flip, image, axis)
            masks = _reverse_if(flip, masks, axis + 1)
            y1, x1, y2, x2 = tf.unstack(boxes, axis=1)
            flipped = [1 - y2, x1, 1 - y1, x2] if axis == 0 else [y1, 1 - x2, y2, 1 - x1]
            boxes = tf.where(flip, tf.stack(flipped, axis=1), boxes)
        return image, boxes, masks

    def _draw_turns(self, shape, seed):
        """Quarter turns after which an image of this shape lies as the canvas does.

        Two of the four, or all of them on a square canvas: each as likely.
        """
        height, width = self._size
        if height == width:
            return tf.random.stateless_uniform([], seed, 0, 4, tf.int32)
        half_turns = tf.random.stateless_uniform([], seed, 0, 2, tf.int32)
        lies_otherwise = tf.not_equal(shape[0] > shape[1], height > width)
        return 2 * half_turns + tf.cast(lies_otherwise, tf.int32)


def _scale(image, size):
    """Bilinear, antialiased as the baseline does it (PIL): details beyond what a smaller image can
    show would come out as other details."""
    # Where nothing becomes smaller there is nothing to do against that, in a fifth of the time.
    return tf.cond(
        tf.reduce_all(size >= tf.shape(image)[:2]),
        lambda: tf.image.resize(image, size),
        lambda: tf.image.resize(image, size, antialias=True),
    )


def _normalize_and_pad(image, height, width):
    """Normalizes [h, w, 3] float, 0 to 255, as the Model Garden does; zeros below and to the right.

    Row by row as one vector: TensorFlow's arithmetic with three numbers per pixel takes four times
    as long.
    """
    shape = tf.shape(image)
    mean, scale = (
        tf.tile(tf.constant(values, tf.float32), shape[1:2])
        for values in (preprocess_ops.MEAN_RGB, [1.0 / x for x in preprocess_ops.STDDEV_RGB])
    )
    rows = (tf.reshape(image, [shape[0], -1]) - mean) * scale
    rows = tf.pad(rows, [[0, height - shape[0]], [0, 3 * (width - shape[1])]])
    return tf.reshape(rows, [height, width, 3])


def _reverse_if(wanted, x, axis):
    # `tf.where` would reverse it always and copy it once more.
    return tf.cond(wanted, lambda: tf.reverse(x, [axis]), lambda: x)


def decode(record: tf.Tensor) -> dict[str, tf.Tensor]:
    """A record as the Model Garden's decoder gives it, with `groundtruth_mask_crops` as
    [N, S, S] uint8, see `mask_crops`."""
    masks = tf.io.parse_single_example(
        record, {mask_crops.FEATURE: tf.io.FixedLenFeature([], tf.string)}
    )
    return {
        **tf_example_decoder.TfExampleDecoder().decode(record),
        'groundtruth_mask_crops': mask_crops.decode(masks[mask_crops.FEATURE]),
    }


def _image_id(data):
    return tf.strings.to_number(data['source_id'], tf.int64)


def _files(params):
    return records.files_of(params.input_path)


# Images made at a time where there are as many cores, even if a batch has fewer.
_AT_A_TIME = 16


def _num_parallel_calls(params):
    """Examples made at a time. AUTOTUNE takes as many as there are cores, and each is 0.1 GB where
    images are large: on 96 cores 10 GB, whatever the batch."""
    return min(max(params.global_batch_size, _AT_A_TIME), num_cores())


def training_canvases(
    model: configs.Generator, params: configs.DataConfig
) -> list[tuple[int, int]]:
    """Height and width in pixels of the training input: of wide or square images, of upright ones.

    One where there is one kind only, or both need the same. With quarter turns every image is of
    both kinds.

    The shorter side is never longer than `train_short_side` allows, and the longer one by the
    largest of `aspect_ratios`. Multiples of the coarsest level's stride; no image is scaled
    otherwise than on a canvas of the model's input size, which turns with an image that is turned.
    Where the longer side of that limits the scale, images need less of the shorter one; how much,
    the smallest ratio would tell, which the records do not have.
    """
    stride = 2**model.max_level
    height, width, _ = model.input_size
    turns = params.parser.aug_quarter_turns
    ratios = [max(params.aspect_ratios)] * 2 if turns else params.aspect_ratios
    short, long, high = (
        -(-int(params.parser.train_short_side[1] * ratio + 0.5) // stride) * stride
        for ratio in (1.0, *ratios)
    )
    if turns:
        wide = min(min(height, width), short), min(max(height, width), long)
        upright = wide[::-1]
    else:
        wide = min(height, short), min(width, long)
        upright = min(height, high), min(width, short)
        if params.num_upright in (0, params.num_examples):
            return [upright if params.num_upright else wide]
    return [wide] if wide == upright else [wide, upright]


def training_dataset(
    model: configs.Generator,
    params: configs.DataConfig,
    seed: int,
    first_batch: int = 0,
    input_context: Optional[tf.distribute.InputContext] = None,
) -> tf.data.Dataset:
    """Endless batches of training examples, a new order each epoch, the same for the same seed.

    Where there are two canvases, a global batch has either. Of a data set with wide and upright
    images, which one goes by their shares in it, so that every image comes equally often; each kind
    has epochs of its own. With quarter turns the canvases take turns, and the epochs are those of
    all images.

    Args:
      model: gives anchors and input size.
      params: fed from records; `parser`, `global_batch_size`, and `shuffle_buffer_size`, the number
        of encoded examples that are held and shuffled at a time.
      seed: the run's.
      first_batch: number of the first global batch, to go on where a stopped run was.
      input_context: of the distribution strategy.

    Returns:
      A dataset of (images [b, H, W, 3], labels), b the batch of one replica; H and W are static
      where all have the same canvas.
    """
    canvases = training_canvases(model, params)
    numbered = functools.partial(_numbered_records, params, seed)
    turns = params.parser.aug_quarter_turns
    shares = (1, 2) if turns else (params.num_upright, params.num_examples)
    # Batches on the upright canvas among the first so many ones.
    count = lambda batches: batches * shares[0] // shares[1]  # noqa: E731
    if len(canvases) == 1:
        parts = [numbered(None, first_batch)]
    elif turns:
        parts = [
            numbered(None, first_batch).filter(
                functools.partial(_is_of_batches, params.global_batch_size, which)
            )
            for which in (0, 1)
        ]
    else:
        parts = [
            numbered(False, first_batch - count(first_batch)),
            numbered(True, count(first_batch)),
        ]
    parts = [
        _batches(Parser(model, params.parser, seed, canvas), part, params, input_context)
        for canvas, part in zip(canvases, parts)
    ]
    if len(parts) == 1:
        (dataset,) = parts
    else:
        replicas = input_context.num_replicas_in_sync if input_context else 1
        pipelines = input_context.num_input_pipelines if input_context else 1
        choice = tf.data.Dataset.range(first_batch, tf.int64.max).flat_map(
            lambda batch: tf.data.Dataset.from_tensors(count(batch + 1) - count(batch)).repeat(
                replicas // pipelines
            )
        )
        dataset = tf.data.Dataset.choose_from_datasets(parts, choice)
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY))
    return _without_autotuning(dataset.prefetch(2))


# Examples of upright images are counted from here, so that they draw other numbers than wide ones.
_FIRST_UPRIGHT = 2**62


def _numbered_records(params, seed, is_upright, first_batch):
    """Endless encoded records with their numbers in the run, from global batch `first_batch` on.

    Of wide images, of upright ones, or, where `is_upright` is None, of all.
    """
    num_examples, first_number = params.num_examples, 0
    if is_upright is not None:
        num_examples = params.num_upright if is_upright else num_examples - params.num_upright
        first_number = _FIRST_UPRIGHT if is_upright else 0
    first_epoch, skipped = divmod(first_batch * params.global_batch_size, num_examples)

    def epoch(number):
        records = _shuffled_epoch(params, _files(params), seed, number, is_upright)
        return records.enumerate(first_number + number * num_examples)

    return tf.data.Dataset.range(first_epoch, tf.int64.max).flat_map(epoch).skip(skipped)


def _is_of_batches(batch_size, which, number, record):
    """Whether example `number` of the run is in the even (`which` 0) or the odd (1) batches."""
    del record
    return tf.equal(number // batch_size % 2, which)


def _with_next(numbered):
    """Number and record of each example, and the record after it: of the same canvas, and read
    once for both. Encoded records, so that they are small."""

    def pair(numbers, records):
        pairs = tf.data.Dataset.zip((numbers.batch(2), records.batch(2)))
        return pairs.map(lambda numbers, records: (numbers[0], records[0], records[1]))

    return numbered.window(2, shift=1, drop_remainder=True).flat_map(pair)


def _batches(parser, numbered, params, input_context):
    """Batches of one replica on one canvas."""
    if params.parser.aug_copy_paste:
        numbered = _with_next(numbered)
    dataset, batch_size = _shard(numbered, params.global_batch_size, input_context)
    dataset = dataset.map(
        lambda number, record, *following: parser.parse_train(
            decode(record), number, *[decode(x) for x in following]
        ),
        num_parallel_calls=_num_parallel_calls(params),
        deterministic=True,
    )
    return dataset.batch(batch_size, drop_remainder=True)


def _shuffled_epoch(params, files, seed, number, is_upright):
    """Records of epoch `number`, all or those of one kind: files and blocks are shuffled."""

    def shuffle(x, what):
        return tf.random.experimental.stateless_shuffle(
            x, tf.stack([tf.cast(seed, tf.int64), number * 2 + what])
        )

    encoded = tf.data.Dataset.from_tensor_slices(shuffle(tf.constant(files), 0)).interleave(
        tf.data.TFRecordDataset, cycle_length=min(len(files), 16)
    )
    if is_upright is not None:
        encoded = encoded.filter(lambda record: tf.equal(_lies_upright(record), is_upright))
    blocks = encoded.batch(params.shuffle_buffer_size)
    return blocks.map(lambda block: shuffle(block, 1)).unbatch()


def _lies_upright(record):
    """Whether the image of an encoded record is higher than wide; the image stays encoded."""
    names = ('image/height', 'image/width')
    size = tf.io.parse_single_example(
        record, {name: tf.io.FixedLenFeature([], tf.int64) for name in names}
    )
    return size['image/height'] > size['image/width']


def _shard(dataset, batch_size, input_context):
    """This input pipeline's part of `dataset`, and the batch of one of its replicas."""
    if not input_context:
        return dataset, batch_size
    return (
        dataset.shard(input_context.num_input_pipelines, input_context.input_pipeline_id),
        input_context.get_per_replica_batch_size(batch_size),
    )


def evaluation_dataset(
    params: configs.DataConfig,
    parser: Parser,
    input_context: Optional[tf.distribute.InputContext] = None,
) -> tf.data.Dataset:
    """Every image once; the last batch is filled with the first images under the id -1."""
    encoded = tf.data.TFRecordDataset(_files(params))
    filling = encoded.repeat().take(-params.num_examples % params.global_batch_size)
    marked = [
        part.map(functools.partial(_mark, is_filling))
        for part, is_filling in ((encoded, False), (filling, True))
    ]
    # Before anything is decoded: a worker decodes its own images alone.
    dataset, batch_size = _shard(
        marked[0].concatenate(marked[1]), params.global_batch_size, input_context
    )

    def parse(is_filling, record):
        image, labels = parser.parse_eval(decode(record))
        source_id = tf.where(is_filling, tf.constant(-1, tf.int64), labels['source_id'])
        return image, {**labels, 'source_id': source_id}

    dataset = dataset.map(parse, num_parallel_calls=_num_parallel_calls(params), deterministic=True)
    return _without_autotuning(dataset.batch(batch_size, drop_remainder=True).prefetch(2))


def _mark(is_filling, record):
    return is_filling, record


def _without_autotuning(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """The same data set without tf.data's thread that looks for better numbers.

    Ours are given. That thread sleeps longer and longer between two looks, and at the end of the
    data it is sometimes not woken: dropping the iterator then waits until it wakes by itself, which
    takes up to twice as long as the data took.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)
