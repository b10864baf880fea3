"""What each of several workers reads: together every image once, whatever the numbers are."""

import collections

import pytest
import tensorflow as tf

from gan_mrcnn import configs
from gan_mrcnn.data import input_pipeline
from gan_mrcnn.data.readers import base
from gan_mrcnn.data.records import records
from tests import tiny

NUM_IMAGES = 5
MODEL = configs.Generator(num_classes=2, input_size=[64, 64, 3])
# Together fewer and more than there are images.
several = pytest.mark.parametrize('workers, per_worker', [(4, 1), (3, 2)])


@pytest.fixture(scope='module')
def record_set(tmp_path_factory) -> records.RecordSet:
    """An odd number of images."""
    dataset: base.Dataset = tiny.DATASET
    return records.ensure_records(dataset, 'train', str(tmp_path_factory.mktemp('shares')))


def read(record_set, build, workers, per_worker, batches):
    """Ids of the images, and numbers of the draws, that each worker gets, in its order."""
    params = configs.DataConfig(
        global_batch_size=workers * per_worker,
        shuffle_buffer_size=3,
        parser=configs.Parser(train_short_side=[32, 40]),
    )
    record_set.feed(params)
    shares = []
    for worker in range(workers):
        context = tf.distribute.InputContext(workers, worker, workers)
        dataset = build(params, context)
        labels = [labels for _, labels in dataset.take(batches).as_numpy_iterator()]
        shares.append([int(x) for one in labels for x in one['source_id']])
    return shares


@several
def test_no_image_is_seen_twice_in_an_epoch(record_set, workers, per_worker):
    """Over as many steps as make some epochs exactly: each image as often as there are epochs."""

    def build(params, context):
        return input_pipeline.training_dataset(MODEL, params, 7, 0, context)

    # NUM_IMAGES steps are workers * per_worker epochs.
    shares = read(record_set, build, workers, per_worker, NUM_IMAGES)
    counts = collections.Counter(x for share in shares for x in share)
    assert set(counts.values()) == {workers * per_worker} and len(counts) == NUM_IMAGES
    # The order of the run, dealt out in turn: the first epoch is the first NUM_IMAGES of it.
    order = [x for row in zip(*shares) for x in row]
    for epoch in range(workers * per_worker):
        seen = order[epoch * NUM_IMAGES : (epoch + 1) * NUM_IMAGES]
        assert len(set(seen)) == NUM_IMAGES


@several
def test_validation_covers_every_image_once(record_set, workers, per_worker):
    def build(params, context):
        parser = input_pipeline.Parser(MODEL, params.parser, seed=7)
        return input_pipeline.evaluation_dataset(params, parser, context)

    shares = read(record_set, build, workers, per_worker, -1)
    ids = [x for share in shares for x in share if x >= 0]
    assert sorted(ids) == sorted(record_set.image_ids)
    # All take part in as many batches: nobody waits for somebody who has none left.
    assert len({len(share) for share in shares}) == 1


@several
@pytest.mark.parametrize('part', ['training', 'validation'])
def test_a_worker_decodes_what_it_sees_alone(part, record_set, workers, per_worker, monkeypatch):
    """What others see costs it no more than reading it."""
    decoded, decode = [], input_pipeline.decode

    def count(record):
        decoded.append(len(record))
        return record

    monkeypatch.setattr(
        input_pipeline,
        'decode',
        lambda record: decode(tf.ensure_shape(tf.numpy_function(count, [record], tf.string), [])),
    )

    def build(params, context):
        if part == 'training':
            return input_pipeline.training_dataset(MODEL, params, 7, 0, context)
        parser = input_pipeline.Parser(MODEL, params.parser, seed=7)
        return input_pipeline.evaluation_dataset(params, parser, context)

    shares = read(record_set, build, workers, per_worker, 1)
    # Some batches are made ahead: two, and one that waits to be taken.
    assert 0 < len(decoded) <= sum(map(len, shares)) * 4
    if part == 'validation':
        decoded.clear()
        shares = read(record_set, build, workers, per_worker, -1)
        assert len(decoded) == sum(map(len, shares))
