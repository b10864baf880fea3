"""The record of steps that were not finite, over several starts of a run and from version 0.1."""

import json

import pytest
import tensorflow as tf

from gan_mrcnn import configs
from gan_mrcnn.training import nonfinite


def event(step, policy):
    """As version 0.1 wrote it into `blow_ups.json`."""
    return {
        'step': step,
        'policy': policy,
        'images': ['b.png', 'a.jpg'],
        'terms': {'mask_loss': '0.693197', 'total_loss': 'nan'},
        'batch': f'runs/old/blow_ups/step-{step}.npz',
    }


def start(folder, policy):
    config = configs.Nonfinite(policy=policy, rate_factor=0.5)
    return nonfinite.NonfiniteSteps(config, str(folder), is_chief=True)


def handle(steps, step):
    steps.handle(
        step,
        inputs=(tf.zeros([1, 8, 8, 3]), {'source_id': tf.constant([7])}),
        terms={'total_loss': float('nan')},
        name_images=lambda ids: [f'{i}.png' for i in ids],
        checkpoint=tf.train.Checkpoint(weight=tf.Variable(1.0)),
        say=print,
    )


def test_a_run_of_version_0_1_that_went_back_keeps_its_lower_rate(tmp_path):
    events = [event(2, 'go_back'), event(2, 'go_back'), event(5, 'skip')]
    (tmp_path / 'blow_ups.json').write_text(json.dumps(events))
    steps = start(tmp_path, 'go_back')
    assert (steps.count, steps.rate_scale) == (3, 0.25)
    with pytest.raises(nonfinite.GoBack):
        handle(steps, 9)
    # The old events count together with the new one, also in the next start.
    for now in (steps, start(tmp_path, 'go_back')):
        assert (now.count, now.rate_scale) == (4, 0.125)
    written = json.loads((tmp_path / 'nonfinite.json').read_text())
    assert written[:3] == events and written[3]['images'] == ['7.png']
    assert written[3]['batch'] == str(tmp_path / 'nonfinite' / 'step-9.npz')


def test_a_batch_that_is_skipped_again_after_a_restart_counts_once(tmp_path):
    for _ in range(2):
        steps = start(tmp_path, 'skip')
        handle(steps, 3)
        assert (steps.count, steps.rate_scale) == (1, 1.0)
