# SPDX-License-Identifier: Apache-2.0
"""What benchmarks/gpu.py can get wrong without a GPU: time limits, its file, reading a profile."""

import argparse
import json
import pathlib
import subprocess
import sys
import time

import pytest

BENCHMARKS = pathlib.Path(__file__).resolve().parents[1] / 'benchmarks'
sys.path.insert(0, str(BENCHMARKS))

import _device_profile  # noqa: E402
import gpu  # noqa: E402


@pytest.fixture(autouse=True)
def _locks(tmp_path, monkeypatch):
    monkeypatch.setenv('GPU_BENCHMARK_LOCKS', str(tmp_path))


def python(name, code, limit=None):
    """A job of that code, which finds the path of its JSON file in `sys.argv[-1]`."""
    return gpu.Job(name, [sys.executable, '-c', f'import sys\n{code}'], {}, limit)


def run(jobs, tmp_path, limit=30.0, at_once=4):
    path = tmp_path / 'all.json'
    options = argparse.Namespace(limit=limit, jobs=at_once, folder=tmp_path)
    report = gpu.Report(path, {})
    gpu.run_jobs(jobs, options, report)
    return json.loads(path.read_text())['parts'], report.format()


WRITE = 'open(sys.argv[-1], "w").write(\'{"summary": ["a line"], "figure": 3}\')\n'


def test_figures_of_a_part_are_kept_however_it_ends(tmp_path):
    broken = f'{WRITE}print("layout failed: x")\nprint("why")\nsys.exit(3)'
    slow = f'{WRITE}import time\ntime.sleep(60)'
    parts, table = run(
        [python('good', WRITE), python('broken', broken), python('slow', slow, 1.5)], tmp_path
    )
    assert {name: part['status'] for name, part in parts.items()} == {
        'good': 'finished',
        'broken': 'failed with 3',
        'slow': 'cut off after 2 s',
    }
    assert {part['figure'] for part in parts.values()} == {3}
    assert [parts[name]['layout_failed_lines'] for name in ('good', 'broken')] == [0, 1]
    assert 'last line of its log: why' in table
    assert table.count('a line') == 3


def test_the_whole_limit_ends_all_with_what_they_have_started(tmp_path):
    child = tmp_path / 'child'
    code = (
        'import subprocess, time\n'
        'p = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])\n'
        f'open({str(child)!r}, "w").write(str(p.pid))\ntime.sleep(60)'
    )
    start = time.monotonic()
    parts, _ = run([python('first', code), python('next', WRITE)], tmp_path, 2.0, at_once=1)
    assert time.monotonic() - start < 20
    assert parts['first']['status'] == 'cut off with the whole'
    assert parts['next']['status'].startswith('left out')
    state = subprocess.run(
        ['ps', '-o', 'stat=', '-p', child.read_text()], capture_output=True, text=True, check=False
    ).stdout
    assert state.strip()[:1] in ('', 'Z')


def test_others_wait_for_the_records(tmp_path):
    converted = tmp_path / 'converted'
    convert = f'import time\ntime.sleep(1)\nopen({str(converted)!r}, "w")'
    read = (
        f'sys.path.insert(0, {str(BENCHMARKS)!r})\nimport os, _card\n'
        f'os.environ["GPU_BENCHMARK_LOCKS"] = {str(tmp_path)!r}\n'
        f'with _card.shared("records"):\n    assert os.path.exists({str(converted)!r})'
    )
    parts, _ = run([python('records-train', convert), python('reader', read)], tmp_path)
    assert parts['reader']['status'] == 'finished', parts


def test_profile_counts_each_kernel_once_and_idle_time(tmp_path):
    """Two streams that overlap, a gap, and a derived line that must not count."""
    xplane_pb2 = pytest.importorskip('tensorflow.tsl.profiler.protobuf.xplane_pb2')
    space = xplane_pb2.XSpace()
    plane = space.planes.add(name='/device:GPU:0')
    space.planes.add(name='/host:CPU')
    plane.stat_metadata[1].name = 'tf_op'
    plane.stat_metadata[2].name = 'step/pool:MaxPool'
    for number, kernel in enumerate(('gemm', 'pool', 'copy'), start=1):
        plane.event_metadata[number].name = kernel

    def add(line, kernel, start, duration, **operation):
        event = line.events.add(metadata_id=kernel, offset_ps=start, duration_ps=duration)
        if operation:
            event.stats.add(metadata_id=1, **operation)

    first = plane.lines.add(name='Stream #1(Compute)', timestamp_ns=1)
    second = plane.lines.add(name='Stream #2(Compute)', timestamp_ns=0)
    derived = plane.lines.add(name='TensorFlow Ops')
    ms = 10**9
    add(first, 1, 0, 2 * ms, str_value='step/conv:Conv2D')
    add(first, 1, 8 * ms, 2 * ms, str_value='step/conv_1:Conv2D')
    add(second, 2, ms + 1000, 3 * ms, ref_value=2)
    add(second, 3, ms + 1000, ms)
    add(derived, 1, 0, 10 * ms)
    path = tmp_path / 'plugins/profile/now/host.xplane.pb'
    path.parent.mkdir(parents=True)
    path.write_bytes(space.SerializeToString())

    (figures,) = _device_profile.summarize(tmp_path, steps=2).values()
    assert figures['milliseconds_per_step'] == pytest.approx(5)
    assert figures['idle_share'] == pytest.approx(0.4)
    assert figures['types'] == [['Conv2D', 2, 1], ['MaxPool', 1.5, 0.5], ['copy', 0.5, 0.5]]
    assert ['step/conv_1', 1, 0.5] in figures['operations']
    assert figures['kernels'][0] == ['gemm', 2, 1]


def test_torchvision_gets_the_numbers_of_the_paper_s_row():
    numbers = gpu.torchvision_numbers(BENCHMARKS.parent / 'configs/gland.yaml')
    assert numbers['input_size'] == [576, 832]
    assert (numbers['short_side'], numbers['batch'], numbers['model_id']) == (522, 8, 50)
    assert (numbers['proposals'], numbers['test_proposals'], numbers['rois']) == (2000, 1000, 512)
