"""What a run reports: lines where there is no terminal, and a status file that is always whole."""

import json
import threading

import pytest
import tensorflow as tf

from gan_mrcnn import configs
from gan_mrcnn.training import status
from gan_mrcnn.utils import cli
from gan_mrcnn.utils.errors import UserError


@pytest.fixture
def step():
    """The global step, which orbit makes that of the summaries."""
    variable = tf.Variable(0, dtype=tf.int64)
    tf.summary.experimental.set_step(variable)
    yield variable
    tf.summary.experimental.set_step(None)


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(status.time, 'monotonic', lambda: now[0])
    return now


def test_lines_have_loss_speed_and_time_left(step, clock, tmp_path, capsys):
    config = configs.gan_maskrcnn()
    config.trainer.train_steps = 100
    config.task.train_data.global_batch_size = 4
    run_status = status.Status(str(tmp_path), 100, is_chief=True)
    watching = status.Progress(config, 0, run_status)
    for number in (10, 20):
        step.assign(number)
        clock[0] += 20.0
        watching.update({'total_loss': tf.constant(1.5), 'learning_rate': 0.01})
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        'step 10 of 100: loss 1.500',
        'step 20 of 100: loss 1.500, s/step 2.00, img/s 2.0, left 0:02:40',
    ]
    # Validation takes its time, which is none of the steps'.
    clock[0] += 1000.0
    watching.evaluated({'box_AP': 0.25, 'mask_AP': tf.constant(0.5)})
    assert 'step 20: validation box AP 0.250, mask AP 0.500' in capsys.readouterr().err
    run_status.update(state='finished')
    found = json.loads((tmp_path / 'status.json').read_text())
    assert found['state'] == 'finished' and found['step'] == 20 and found['train_steps'] == 100
    assert found['eta_seconds'] == 160 and found['losses']['total_loss'] == 1.5
    assert found['validation'] == {'step': 20, 'box_AP': 0.25, 'mask_AP': 0.5}


def test_warnings_about_the_gan_are_said_and_go_to_tensorboard(step, clock, tmp_path, capsys):
    config = configs.gan_maskrcnn()
    watching = status.Progress(config, 0, status.Status(str(tmp_path), 100, is_chief=False))
    terms = {
        'total_loss': 1.0,
        'mask_loss': 0.4,
        'box_score_real': 0.999,
        'box_score_fake': 0.001,
        'mask_discriminator_loss': -0.2,
    }
    watching.summary_writer = tf.summary.create_file_writer(str(tmp_path))
    for number in range(30):
        step.assign(number)
        watching.update(terms)
    watching.summary_writer.flush()
    assert capsys.readouterr().err.count('the box discriminator wins') == 1
    (path,) = tmp_path.glob('events*')
    tags = {v.tag for e in tf.compat.v1.train.summary_iterator(str(path)) for v in e.summary.value}
    assert tags == {'warnings/box_discriminator_wins'}


def test_a_reader_of_the_status_never_sees_a_part_of_it(tmp_path, clock):
    run_status = status.Status(str(tmp_path), 100, is_chief=True)
    run_status.update(state='training')
    found, done = [], threading.Event()

    def read():
        while not done.is_set():
            found.append(json.loads((tmp_path / 'status.json').read_text())['step'])

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(200):
        clock[0] += 10.0
        run_status.update(step=number, losses={f'loss{i}': 1.0 * i for i in range(number % 50)})
    done.set()
    reader.join()
    assert found and found == sorted(found)


def test_what_is_printed_goes_to_the_log_file_too(tmp_path, monkeypatch, capsys):
    import sys

    for name in ('stdout', 'stderr'):
        monkeypatch.setattr(sys, name, getattr(sys, name))
    path = tmp_path / 'log.txt'
    path.write_text('before\n')
    cli.log_to(str(path))
    print('out')
    print('err', file=sys.stderr)
    assert not sys.stderr.isatty()
    assert path.read_text() == 'before\nout\nerr\n'
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ('out\n', 'err\n')
    with pytest.raises(UserError, match='nosuch'):
        cli.log_to(str(tmp_path / 'nosuch' / 'log.txt'))
