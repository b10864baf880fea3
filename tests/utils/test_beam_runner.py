"""Jobs on Apache Beam's runners: what arrives, what is said of failures, and that nothing hangs."""

import functools
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

import psutil
import pytest

from gan_mrcnn.utils import beam_runner
from gan_mrcnn.utils.errors import UnfinishedError, UserError
from tests.utils.beam_jobs import HERE, JOBS, write, write_but

pytest.importorskip('apache_beam', reason="the extra 'beam' is not installed")
REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture
def logs(tmp_path, monkeypatch):
    """The folder where what workers say is kept."""
    folder = tmp_path / 'logs'
    folder.mkdir()
    monkeypatch.setattr(tempfile, 'tempdir', str(folder))
    return folder


@pytest.fixture
def out(tmp_path):
    folder = tmp_path / 'out'
    folder.mkdir()
    return folder


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_every_job_is_done_as_it_was_given(out, logs):
    stream, ticks = sys.stderr, []
    runner = beam_runner.from_flags('DirectRunner', HERE)
    every_second = functools.partial(ticks.append, 1)
    beam_runner.run(functools.partial(write, out), JOBS, runner, every_second)
    assert {path.name: path.read_text() for path in out.iterdir()} == {
        str(number): f'{number} a/b' for number in range(6)
    }
    assert sys.stderr is stream and ticks and not names(logs)


def test_a_job_may_be_done_twice(out, logs):
    """Beam's own flag repeats what a worker has done."""
    runner = beam_runner.from_flags('DirectRunner', (*HERE, '--direct_runner_bundle_repeat=2'))
    beam_runner.run(functools.partial(write, out), JOBS, runner)
    assert len(names(out)) == 6


def test_no_job_is_no_error(logs):
    beam_runner.run(write, [], beam_runner.from_flags('DirectRunner', HERE))


def test_a_users_error_is_one_line_and_the_others_are_done(out, logs, capfd):
    runner = beam_runner.from_flags('DirectRunner', HERE)
    with pytest.raises(UserError, match=r'^2\.png is damaged \(and 1 more\)$') as error:
        beam_runner.run(functools.partial(write_but, out, UserError, (4, 2)), JOBS, runner)
    assert not isinstance(error.value, UnfinishedError)
    assert names(out) == ['0', '1', '3', '5']
    assert not names(logs) and capfd.readouterr().err == ''


def test_another_failure_is_one_line_that_names_the_log(out, logs, capfd):
    runner = beam_runner.from_flags('DirectRunner', HERE)
    with pytest.raises(UnfinishedError) as error:
        beam_runner.run(functools.partial(write_but, out, KeyError, (2,)), JOBS, runner)
    (log,) = logs.iterdir()
    assert '\n' not in str(error.value) and '2.png is damaged' in str(error.value)
    assert 'Beam on DirectRunner failed (KeyError: ' in str(error.value)
    assert str(log) in str(error.value) and 'write_but' in log.read_text()
    assert capfd.readouterr().err == ''


def test_the_runner_that_beam_downloads_is_not_tried(out, logs, monkeypatch):
    from apache_beam.runners.portability import prism_runner

    tried = []
    monkeypatch.setattr(
        prism_runner.PrismRunner, 'run_pipeline', lambda *_: tried.append(1) or 1 / 0
    )
    runner = beam_runner.from_flags('DirectRunner', HERE)
    beam_runner.run(functools.partial(write, out), JOBS, runner)
    assert not tried and len(names(out)) == 6


@pytest.mark.parametrize(
    ('name', 'flags', 'said'),
    [
        ('DirectRunner', ['--direct_num_worker=2'], '--direct_num_worker is no flag of this'),
        ('DirectRunner', ['--skip_bda'], '--skip_bda is no flag of this command, nor of Apache'),
        ('DirectRunner', ['--direct_num_workers=x'], "direct_num_workers: invalid int value: 'x'"),
        ('DirectRunner', ['--direct_running_mode', 'x'], "invalid choice: 'x'"),
        ('FlinkRunner', [], 'give --flink_job_server_jar FILE, or --job_endpoint of a running one'),
        ('SparkRunner', [], 'give --spark_job_server_jar FILE, or --job_endpoint of a running one'),
    ],
)
def test_wrong_flags_are_one_line(name, flags, said, capfd):
    with pytest.raises(UserError) as error:
        beam_runner.from_flags(name, flags)
    assert said in str(error.value) and '\n' not in str(error.value)
    assert capfd.readouterr().err == ''


def test_flags_of_a_job_server_are_its_own_matter():
    flags = ['--job_endpoint=h:1', '--checkpointing_interval=9']
    assert beam_runner.from_flags('FlinkRunner', flags).flags == ('--runner=FlinkRunner', *flags)


def test_without_the_extra_it_is_named(monkeypatch):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'gan-mrcnn\[beam\]'"):
        beam_runner.from_flags('DirectRunner', [])


def start(function, folder):
    """A program with two worker processes."""
    text = f"""
import functools, pathlib, sys
from gan_mrcnn.utils import beam_runner, cli
from tests.utils import beam_jobs as jobs
def main():
    runner = beam_runner.from_flags('DirectRunner', ['--direct_num_workers=2'])
    work = functools.partial(jobs.{function}, pathlib.Path(sys.argv[1]))
    beam_runner.run(work, jobs.JOBS, runner)
cli.run_main(main, 'program')
"""
    return subprocess.Popen(
        [sys.executable, '-c', text, str(folder)],
        env={**os.environ, 'PYTHONPATH': str(REPOSITORY), 'TMPDIR': str(folder.parent)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def ended(process, status):
    """What a program says that ends with `status`; nothing of it is left."""
    try:
        _, said = process.communicate(timeout=600)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert process.returncode == status, said
    left = [one for one in psutil.process_iter() if _group(one.pid) == process.pid]
    _, alive = psutil.wait_procs(left, timeout=30)
    assert not alive
    return said


def _group(pid):
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None


@pytest.mark.slow
def test_worker_processes_do_it_and_say_nothing(out):
    assert ended(start('write', out), 0) == ''
    assert len(names(out)) == 6


@pytest.mark.slow
def test_a_worker_process_that_is_killed_ends_it_with_one_line(out):
    said = ended(start('write_or_die', out), 2)
    assert said.startswith('program: a worker process of DirectRunner was killed, most likely')
    assert said.count('\n') == 1 and 'goes on with what is missing' in said


@pytest.mark.slow
def test_ctrl_c_ends_the_worker_processes(out):
    process = start('write_slowly', out)
    deadline = time.monotonic() + 600
    while len(names(out)) < 2:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    assert ended(process, 130) == 'program: stopped\n'


@pytest.mark.slow
def test_a_job_server_gets_the_same_jobs(out, logs):
    """Beam's own, within this process; Flink's and Spark's speak the same protocol."""
    flags = ['--job_endpoint=embed', '--environment_type=LOOPBACK']
    runner = beam_runner.from_flags('PortableRunner', flags)
    with pytest.raises(UserError, match=r'^2\.png is damaged$'):
        beam_runner.run(functools.partial(write_but, out, UserError, (2,)), JOBS, runner)
    assert len(names(out)) == 5
