"""Runs that share a machine: order, failures, signals; with a program that trains nothing."""

import fcntl
import json
import os
import signal
import sys
import threading
import time

import pytest

from gan_mrcnn.evaluation import jobs
from gan_mrcnn.utils.errors import UserError

# `train FOLDER SECONDS CODE` answers SIGTERM as a training does; `evaluate FOLDER` writes figures.
PROGRAM = """
import json, os, pathlib, signal, sys, time
word, folder = sys.argv[1], pathlib.Path(sys.argv[2])
(folder / f'{word}.start').write_text(str(time.time()))
def status(state, step):
    content = {'state': state, 'step': step, 'train_steps': 9, 'eta_seconds': 30}
    content['pid'] = os.getpid()
    (folder / 'new').write_text(json.dumps(content))
    os.replace(folder / 'new', folder / 'status.json')
def stop(*_):
    time.sleep(0.2)
    status('stopped', 5)
    sys.exit(0)
print(word, os.environ.get('TF_NUM_INTRAOP_THREADS'), flush=True)
if word == 'train':
    seconds, code = float(sys.argv[3]), int(sys.argv[4])
    if code == 8:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        signal.signal(signal.SIGTERM, stop)
    status('training', 5)
    time.sleep(seconds)
    if code == 2:
        print('gan-mrcnn train: there is no glass; bring one', flush=True)
        print('noise', flush=True)
        sys.exit(2)
    if code == 9:
        os.kill(os.getpid(), signal.SIGKILL)
    status('finished', 9)
else:
    figures = {'mask': {'AP': 0.25}, 'box': {'AP': None}}
    (folder / 'results.json').write_text(json.dumps({'figures': figures}))
(folder / f'{word}.end').write_text(str(time.time()))
"""


@pytest.fixture(autouse=True)
def program(tmp_path, monkeypatch):
    path = tmp_path / 'program.py'
    path.write_text(PROGRAM)
    monkeypatch.setattr(jobs, 'PROGRAM', (sys.executable, '-S', str(path)))
    monkeypatch.setattr(jobs, 'POLL_SECONDS', 0.02)
    for name in ('TF_NUM_INTRAOP_THREADS', 'TF_FORCE_GPU_ALLOW_GROWTH'):
        monkeypatch.delenv(name, raising=False)


def make_job(tmp_path, name, seconds=0.0, code=0):
    folder = tmp_path / name
    train = ['train', str(folder), str(seconds), str(code)]
    return jobs.Job(name, folder, train, ['evaluate', str(folder)], folder / 'results.json')


def moment(folder, name):
    return float((folder / name).read_text())


def test_as_many_at_a_time_as_asked_for(tmp_path, capsys):
    todo = [make_job(tmp_path, name, 0.4) for name in 'abc']
    assert jobs.run_all(todo, 2) == {}
    a, b, c = (job.folder for job in todo)
    assert moment(b, 'train.start') < moment(a, 'train.end')
    assert moment(c, 'train.start') > min(moment(a, 'evaluate.end'), moment(b, 'evaluate.end'))
    out = capsys.readouterr().out
    assert out.count(': started, log ') == 3
    assert '[3/3] c: finished in 0:00:0' in out and out.count('mask AP 0.2500') == 3
    assert 'box AP' not in out


def test_the_log_has_what_both_programs_print(tmp_path):
    job = make_job(tmp_path, 'a')
    jobs.run_all([job], 1)
    jobs.run_all([job], 1)
    lines = [line for line in (job.folder / jobs.LOG).read_text().splitlines() if line]
    # With one at a time the threads are TensorFlow's own choice.
    assert [line for line in lines if '$' not in line] == ['train None', 'evaluate None'] * 2
    assert f'$ gan-mrcnn train {job.folder} 0.0 0' in lines[0]


def test_jobs_share_the_cores_unless_the_user_has_said_how(tmp_path, monkeypatch):
    monkeypatch.setattr(jobs.cores, 'num_cores', lambda: 7)
    assert jobs._environment(1).get('TF_NUM_INTRAOP_THREADS') is None
    assert jobs._environment(3)['TF_NUM_INTRAOP_THREADS'] == '2'
    assert jobs._environment(9)['TF_NUM_INTRAOP_THREADS'] == '1'
    monkeypatch.setenv('TF_NUM_INTRAOP_THREADS', '5')
    assert jobs._environment(3)['TF_NUM_INTRAOP_THREADS'] == '5'


def test_a_gpu_that_one_process_takes_whole_is_not_shared(monkeypatch):
    monkeypatch.setenv('TF_FORCE_GPU_ALLOW_GROWTH', 'false')
    assert jobs._environment(1)
    with pytest.raises(UserError, match='TF_FORCE_GPU_ALLOW_GROWTH'):
        jobs._environment(2)


def test_a_failure_is_named_and_the_others_go_on(tmp_path, capsys):
    todo = [make_job(tmp_path, 'bad', code=2), make_job(tmp_path, 'killed', code=9)]
    todo.append(make_job(tmp_path, 'good'))
    failures = jobs.run_all(todo, 1)
    log = tmp_path / 'bad' / 'log.txt'
    assert failures['bad'] == f'train: gan-mrcnn train: there is no glass; bring one ({log})'
    assert failures['killed'].startswith('train: killed by SIGKILL after: train None')
    assert set(failures) == {'bad', 'killed'}
    assert not (tmp_path / 'bad' / 'evaluate.start').exists()
    assert (tmp_path / 'good' / 'results.json').exists()
    assert '[1/3] bad: failed: train: gan-mrcnn train: there is no glass' in capsys.readouterr().out


def test_a_training_that_was_stopped_is_not_evaluated(tmp_path):
    job = make_job(tmp_path, 'a', 20)
    stop = threading.Thread(target=stop_training, args=(job.folder,))
    stop.start()
    failures = jobs.run_all([job], 1)
    stop.join()
    assert 'was stopped' in failures['a'] and not (job.folder / 'evaluate.start').exists()


def status(folder):
    try:
        return json.loads((folder / 'status.json').read_text())
    except OSError:
        return {}


def wait_for_training(folder):
    while status(folder).get('state') != 'training':
        time.sleep(0.02)


def stop_training(folder):
    wait_for_training(folder)
    os.kill(status(folder)['pid'], signal.SIGTERM)


@pytest.fixture
def set_signal():
    """`signal.signal`, undone afterwards."""
    before = {}

    def change(number, handler):
        before.setdefault(number, signal.signal(number, handler))

    yield change
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_lets_every_run_save_and_starts_no_other(number, set_signal, tmp_path):
    todo = [make_job(tmp_path, name, 20) for name in 'abc']

    def interrupt():
        for job in todo[:2]:
            wait_for_training(job.folder)
        # Twice within a moment: as a terminal and `make` send it.
        os.kill(os.getpid(), number)
        time.sleep(0.1)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=interrupt)
    # Under nohup it is ignored, and stays so.
    set_signal(number, signal.default_int_handler)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        jobs.run_all(todo, 2)
    thread.join()
    assert [status(job.folder).get('state') for job in todo] == ['stopped', 'stopped', None]
    assert not any((job.folder / 'evaluate.start').exists() for job in todo)
    assert signal.getsignal(number) == signal.default_int_handler


def test_a_second_signal_ends_at_once(tmp_path):
    job = make_job(tmp_path, 'a', 60, code=8)

    def interrupt():
        wait_for_training(job.folder)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(2 * jobs.SAME_SIGNAL_SECONDS)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        jobs.run_all([job], 1)
    thread.join()
    assert status(job.folder)['state'] == 'training'
    with pytest.raises(ProcessLookupError):
        os.kill(status(job.folder)['pid'], 0)


def test_a_folder_in_which_another_process_works_is_left_alone(tmp_path):
    job = make_job(tmp_path, 'a')
    job.folder.mkdir()
    with open(job.folder / jobs.LOG, 'ab') as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        failures = jobs.run_all([job, make_job(tmp_path, 'b')], 1)
    assert 'another process works in its folder' in failures['a'] and set(failures) == {'a'}
    assert not (job.folder / 'train.start').exists()
    assert jobs.run_all([job], 1) == {}


def test_lines_about_those_that_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(jobs, 'LINE_SECONDS', 0.3)
    jobs.run_all([make_job(tmp_path, 'a', 0.8), make_job(tmp_path, 'b', 0.8)], 2)
    line = next(x for x in capsys.readouterr().out.splitlines() if 'a at step 5 of 9' in x)
    assert line.startswith('0 of 2 done, ') and line.endswith('about 0:00:30 left for all')


@pytest.mark.parametrize(
    'left, waiting, at_once, took, expected',
    [
        # Two run for 30 s more and two wait, of which each takes what one takes from its start on.
        ([30, 30], 2, 2, [], (30 + 30 + 2 * 40) / 2),
        ([30, None], 0, 2, [100], 95),
        ([None], 3, 1, [], None),
    ],
)
def test_time_left(left, waiting, at_once, took, expected, monkeypatch):
    class Stand:
        def __init__(self, seconds):
            self.started, self._seconds = 90.0, seconds

        def seconds_left(self):
            return self._seconds

    monkeypatch.setattr(jobs.time, 'monotonic', lambda: 100.0)
    progress = jobs._Progress(5, at_once)
    progress._took = took
    found = progress._left([Stand(seconds) for seconds in left], waiting)
    # One that has run for 10 of 100 s has 90 left.
    assert found == (max(30, 90) if expected == 95 else expected)
