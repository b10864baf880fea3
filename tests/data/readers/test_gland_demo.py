"""The rendered glands: repeatable, of both kinds, some of them touching, none tiny."""

import cv2
import numpy as np
import pytest

from gan_mrcnn.data.readers import gland_demo


@pytest.fixture(scope='module')
def validation():
    return list(gland_demo.DemoGlands().examples('val'))


def label_map(example):
    assert example.decode_masks().sum(0).max() == 1, 'objects overlap'
    return np.tensordot(np.arange(1, len(example.decode_masks()) + 1), example.decode_masks(), 1)


def roughness(mask):
    """Perimeter of an object over that of its convex hull."""
    (outline, *_), _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return cv2.arcLength(outline, True) / cv2.arcLength(cv2.convexHull(outline), True)


def test_the_same_seed_gives_the_same_image_and_another_seed_another():
    image, labels = gland_demo.render(3, 5)
    gland_demo.render(3, 6)
    again, labels_again = gland_demo.render(3, 5)
    np.testing.assert_array_equal(image, again)
    np.testing.assert_array_equal(labels, labels_again)
    assert (gland_demo.render(4, 5)[0] != image).any()
    assert (gland_demo.render(3, 7)[0] != image).any()


def test_sizes_and_types(validation):
    assert len(validation) == 12
    assert {e.image.shape for e in validation} == {(256, 384, 3)}
    for example in validation:
        assert example.image.dtype == np.uint8 and example.decode_masks().dtype == np.uint8
        assert example.classes.tolist() == [1] * len(example.decode_masks())
    assert min(len(e.decode_masks()) for e in validation) >= 3


def test_splits_are_disjoint_and_ids_are_unique():
    demo = gland_demo.DemoGlands()
    assert [demo.num_examples(s) for s in demo.splits] == [48, 12, 60, 20]
    numbers = {split: set(gland_demo._SPLITS[split]) for split in demo.splits}
    assert numbers['train'] | numbers['val'] == numbers['trainval']
    assert not numbers['train'] & numbers['val'] and not numbers['trainval'] & numbers['test']
    ids = [example.image_id for example in demo.examples('val')]
    assert ids == sorted(set(ids)) and min(ids) > 0


def test_every_object_is_one_piece_and_none_is_tiny(validation):
    for example in validation:
        for mask in example.decode_masks():
            assert mask.sum() >= 100
            assert cv2.connectedComponents(mask, connectivity=4)[0] == 2


def test_some_glands_touch(validation):
    pairs = 0
    for example in validation:
        labels = label_map(example)
        for mask in example.decode_masks():
            ring = cv2.dilate(mask, np.ones((5, 5), np.uint8)).astype(bool) & (mask == 0)
            pairs += len(np.unique(labels[ring])) > 1
    assert pairs >= 6


def test_malignant_like_outlines_are_more_ragged(validation):
    even, odd = [], []
    for example in validation:
        malignant = (example.image_id - 1) % 2
        (odd if malignant else even).extend(roughness(mask) for mask in example.decode_masks())
    assert np.median(odd) > np.median(even) + 0.05


def test_glands_look_unlike_the_stroma_but_not_trivially(validation):
    """Nuclei make a gland darker than the stroma; brightness alone does not give it away."""
    for example in validation:
        inside = example.decode_masks().any(0)
        gray = example.image.mean(-1)
        assert np.percentile(gray[inside], 20) < np.percentile(gray[~inside], 20) - 15
        best = max(((gray < t) == inside).mean() for t in range(60, 240, 10))
        assert best < 0.97


def test_fingerprint_follows_seed_and_split():
    pairs = [(seed, split) for seed in (0, 1) for split in ('val', 'test')]
    prints = {gland_demo.DemoGlands(seed).fingerprint(split) for seed, split in pairs}
    assert len(prints) == 4
    assert gland_demo.DemoGlands(0).fingerprint('val') in prints


def test_the_notice_says_demo_and_how_to_get_the_real_data():
    demo = gland_demo.DemoGlands()
    assert demo.is_demo
    for word in ('DEMO', 'not tissue', 'https://warwick.ac.uk', '--data_dir', 'Warwick-QU'):
        assert word in demo.notice
