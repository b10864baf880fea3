# SPDX-License-Identifier: Apache-2.0
"""Everything that is to be measured on a GPU, in one command of some two minutes.

    python benchmarks/gpu.py --data_dir GLANDS --json gpu.json [--published FILE.cu]
        [--torch_python PYTHON] [--model_dir RUN] [--parts steps ...]

| part | what |
|---|---|
| `kernels` | PrRoIPool's CUDA kernels: checked, under compute-sanitizer, and timed |
| `steps` | train.py's step, each --modes in each --dtypes: time, memory, device time by operation |
| `inference` | the network alone and the exported SavedModel |
| `evaluation` | all of evaluate.py on the test images |
| `torchvision` | the same of torchvision's Mask R-CNN, in --torch_python |

Every part is a process of its own. Imports, tracing and compiling go on side by side; what is
timed has the card alone (`_card.py`), but not the host's cores. A part that takes longer than its
share of --limit is ended, and all are when the limit is reached. The file of --json is written anew
whenever a part has a new figure. Logs, profiles and the export are in --folder.

Without a GPU the parts that must have one are left out; the others run on the CPU, for a rehearsal:

    python benchmarks/gpu.py --config_file configs/gland_small.yaml --steps 1 --limit 1800 --jobs 1
"""

import argparse
import contextlib
import dataclasses
import json
import os
import pathlib
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from typing import Optional

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import _card  # noqa: E402
import yaml  # noqa: E402

from gan_mrcnn.data import readers  # noqa: E402
from gan_mrcnn.data.records import records  # noqa: E402
from gan_mrcnn.utils import cli  # noqa: E402
from gan_mrcnn.utils.cores import num_cores  # noqa: E402

HERE = pathlib.Path(__file__).resolve().parent
PARTS = ('kernels', 'torchvision', 'steps', 'inference', 'evaluation')
SPLITS = ('train', 'val', 'test')
# How much of --limit a process may take, with its waiting; the others may take all of it.
SHARES = {'records': 0.3, 'kernels': 0.5, 'torchvision': 0.5}
POLL_SECONDS = 0.2
LOG_LINES = 15
# What torch's interpreter must not inherit: libraries and packages of TensorFlow's.
NOT_FOR_TORCH = ('LD_LIBRARY_PATH', 'PYTHONPATH', 'XLA_FLAGS')


@dataclasses.dataclass
class Job:
    """A process: its name, command, environment, and limit in seconds (None: the whole's)."""

    name: str
    command: list[str]
    environment: dict[str, str]
    limit: Optional[float] = None


class Running:
    """A job's process and its files."""

    def __init__(self, job, folder):
        self.job = job
        self.json = folder / f'{job.name}.json'
        self.log = folder / f'{job.name}.log'
        self.start = time.monotonic()
        with open(self.log, 'wb') as log:
            self.process = subprocess.Popen(
                [*job.command, '--json', str(self.json)],
                env=job.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def seconds(self):
        return time.monotonic() - self.start

    def status(self):
        """How it has ended; None while it runs and may go on."""
        code = self.process.poll()
        if code is not None:
            return 'finished' if code == 0 else f'failed with {code}'
        if self.job.limit and self.seconds() > self.job.limit:
            return f'cut off after {self.job.limit:.0f} s'
        return None

    def kill(self):
        """Ends it with all that it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class Report:
    """All figures, in one file that is whole at any time."""

    def __init__(self, path, machine):
        self._path, self._seen = path, {}
        self.content = {'machine': machine, 'parts': {}}
        self.write()

    def write(self):
        if self._path:
            _card.write_whole(self._path, self.content)

    def leave_out(self, name, reason):
        self.content['parts'][name] = {'status': f'left out: {reason}'}
        self.write()

    def look(self, running):
        """Takes over what a part has written since."""
        if not running.json.exists():
            return
        modified = running.json.stat().st_mtime_ns
        if self._seen.get(running.job.name) != modified:
            self._seen[running.job.name] = modified
            figures = json.loads(running.json.read_text(encoding='utf-8'))
            self.content['parts'][running.job.name] = {'status': 'running', **figures}
            self.write()

    def finish(self, running, status):
        self.look(running)
        lines = running.log.read_text(encoding='utf-8', errors='replace').splitlines()
        part = self.content['parts'].setdefault(running.job.name, {})
        part.update(
            status=status,
            seconds=running.seconds(),
            layout_failed_lines=sum('layout failed' in line for line in lines),
        )
        if status != 'finished':
            part['log'] = [line for line in lines if line.strip()][-LOG_LINES:]
        self.write()
        print(f'{running.job.name}: {status}, {running.seconds():.0f} s', flush=True)

    def format(self):
        """The table: each part, how it ended, and its lines."""
        lines = []
        for name, part in self.content['parts'].items():
            seconds = f', {part["seconds"]:.0f} s' if 'seconds' in part else ''
            lines.append(f'{name}: {part["status"]}{seconds}')
            lines += [f'    {line}' for line in part.get('summary', [])]
            lines += [f'    last line of its log: {line}' for line in part.get('log', [])[-1:]]
        return '\n'.join(lines)


def run_jobs(jobs, options, report):
    """Runs all jobs, the first ones first; nothing of them is left when it returns."""
    end = time.monotonic() + options.limit
    waiting, running = list(jobs), []
    converting = contextlib.ExitStack()
    converting.enter_context(_card.exclusive('records'))
    try:
        while (waiting or running) and time.monotonic() < end:
            while waiting and len(running) < options.jobs:
                running.append(Running(waiting.pop(0), options.folder))
            for one in list(running):
                report.look(one)
                status = one.status()
                if status is not None:
                    running.remove(one)
                    one.kill()
                    report.finish(one, status)
            left = (*waiting, *(one.job for one in running))
            if not any(job.name.startswith('records') for job in left):
                converting.close()  # From here on the others may read them.
            time.sleep(POLL_SECONDS)
    finally:
        for one in running:
            one.kill()
            report.finish(one, 'cut off with the whole')
        for job in waiting:
            report.leave_out(job.name, f'the whole has reached its {options.limit:.0f} s')
        converting.close()


def describe_machine():
    """Card, driver, cores and versions; `card` is None without a GPU."""
    program, card = shutil.which('nvidia-smi'), None
    if program:
        query = [program, '--query-gpu=name,driver_version,memory.total', '--format=csv,noheader']
        found = subprocess.run(query, capture_output=True, text=True, check=False)
        card = found.stdout.splitlines()[0] if found.returncode == 0 and found.stdout else None
    return {
        'card': card,
        'cores': num_cores(),
        'python': platform.python_version(),
        'tensorflow': metadata.version('tensorflow'),
        'command': sys.argv,
        'date': time.strftime('%Y-%m-%d %H:%M:%S'),
    }


def make_jobs(options, report):
    """The processes of the parts that were asked for; says what is left out."""
    base = {**os.environ, 'PYTHONUNBUFFERED': '1'}
    tensorflow = {**base, 'TF_CPP_MIN_LOG_LEVEL': '2', 'TF_FORCE_GPU_ALLOW_GROWTH': 'true'}
    has_card = report.content['machine']['card'] is not None
    on_card = ['--on_card'] if has_card else []
    jobs = []
    if 'kernels' in options.parts:
        if has_card:
            jobs.append(
                Job('kernels', kernels_command(options), base, SHARES['kernels'] * options.limit)
            )
        else:
            report.leave_out('kernels', 'wants a GPU and nvcc')
    if 'torchvision' in options.parts:
        missing = [n for n in ('torch_python', 'data_dir') if not getattr(options, n)]
        if missing:
            report.leave_out('torchvision', f'--{" and --".join(missing)} not given')
        else:
            own = {k: v for k, v in base.items() if k not in NOT_FOR_TORCH}
            command = torchvision_command(options) + on_card
            jobs.append(Job('torchvision', command, own, SHARES['torchvision'] * options.limit))
    commands = tensorflow_commands(options)
    others = [Job(name, command + on_card, tensorflow) for name, command in commands]
    if others:
        # Side by side: the processes that convert begin with importing TensorFlow.
        convert = [sys.executable, __file__, *data_flags(options), '--only_convert']
        limit = SHARES['records'] * options.limit
        jobs = [Job(f'records-{s}', [*convert, s], tensorflow, limit) for s in SPLITS] + jobs
    return jobs + others


def kernels_command(options):
    command = [sys.executable, str(HERE / 'prroi_pool_gpu.py'), '--sanitize']
    return command + (['--published', str(options.published)] if options.published else [])


def torchvision_command(options):
    numbers = json.dumps(torchvision_numbers(options.config_file))
    command = [options.torch_python, str(HERE / '_torchvision_speed.py'), '--numbers', numbers]
    command += ['--data_dir', options.data_dir, '--steps', str(options.steps)]
    return [*command, '--dtypes', *options.dtypes]


def torchvision_numbers(path):
    """What of a configuration torchvision's network can be given, with its defaults here."""
    task = yaml.safe_load(pathlib.Path(path).read_text(encoding='utf-8'))['task']
    model = task['model']
    proposals, rois = model.get('roi_generator', {}), model.get('roi_sampler', {})
    return {
        'model_id': model['backbone']['resnet']['model_id'],
        'input_size': model['input_size'][:2],
        'short_side': task['validation_data']['parser']['test_short_side'],
        'size_divisible': 64,
        'pre_nms': proposals.get('pre_nms_top_k', 2000),
        'test_pre_nms': proposals.get('test_pre_nms_top_k', 1000),
        'proposals': proposals.get('num_proposals', 2000),
        'test_proposals': proposals.get('test_num_proposals', 1000),
        'rois': rois.get('num_sampled_rois', 512),
        'anchors': 256,
        'batch': task['train_data']['global_batch_size'],
    }


def data_flags(options):
    """Flags of where the data are."""
    flags = ['--cache_dir', options.cache_dir]
    return flags + (['--data_dir', options.data_dir] if options.data_dir else [])


def tensorflow_commands(options):
    """Names and commands of the parts with TensorFlow, those that take longest first."""
    common = [*data_flags(options), '--config_file', options.config_file]
    common += ['--steps', str(options.steps)]
    for override in options.params_override:
        common += ['--params_override', override]
    run = ['--model_dir', options.model_dir] if options.model_dir else []

    def one(part, name, *flags):
        command = [sys.executable, str(HERE / '_gpu_parts.py'), part, *common, *flags]
        return name, [*command, '--folder', str(options.folder / name)]

    for mode in options.modes if 'steps' in options.parts else ():
        for dtype in options.dtypes:
            yield one('steps', f'steps-{mode}-{dtype}', '--gan', mode, '--dtype', dtype)
    for dtype in options.dtypes if 'inference' in options.parts else ():
        yield one('inference', f'inference-{dtype}', '--dtype', dtype, *run)
    if 'evaluation' in options.parts:
        yield one('evaluation', 'evaluation', *run)


def convert(options):
    """Makes the records of a split, which the parts read, once and before them."""
    dataset = readers.load_dataset('gland', options.data_dir)
    records.ensure_records(dataset, options.only_convert, options.cache_dir)


def parse_flags():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add('--data_dir', help='folder of the gland contest (default: the demo set)')
    add('--parts', nargs='+', choices=PARTS, default=PARTS)
    add('--json', type=pathlib.Path, help='a file for all figures, whole at any time')
    add('--folder', type=pathlib.Path, help='for logs and profiles (default: a new one)')
    add('--limit', type=float, default=280, help='seconds for all parts together')
    add('--jobs', type=int, default=16, help='processes at once; fewer need less memory')
    add('--config_file', default='configs/gland.yaml')
    add('--params_override', action='append', default=[], help='as of train.py; not torchvision')
    add('--modes', nargs='+', choices=cli.GAN_MODES, default=['combined', 'baseline'])
    add('--dtypes', nargs='+', default=['float32', 'bfloat16'])
    add('--steps', type=int, default=10, help='that are timed, and calls of inference')
    add('--cache_dir', default=cli.default_cache_dir(), help='of the records')
    add('--published', type=pathlib.Path, help='the .cu file of the published PrRoIPool kernel')
    add('--torch_python', help='an interpreter with torch, torchvision and OpenCV')
    add('--model_dir', help='a trained run for inference and evaluation (default: random weights)')
    add('--only_convert', choices=SPLITS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.cache_dir = os.path.expanduser(options.cache_dir)
    if options.folder is None and not options.only_convert:
        options.folder = pathlib.Path(tempfile.mkdtemp(prefix='gan_mrcnn_gpu_'))
    return options


def main():
    options = parse_flags()
    if options.only_convert:
        convert(options)
        return
    # `timeout` sends it; what was started must not stay.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    options.folder = options.folder.resolve()
    options.folder.mkdir(parents=True, exist_ok=True)
    os.environ[_card.FOLDER_VARIABLE] = str(options.folder)
    report = Report(options.json, describe_machine())
    print(f'logs and profiles: {options.folder}', flush=True)
    start = time.monotonic()
    try:
        run_jobs(make_jobs(options, report), options, report)
    finally:
        report.content['seconds'] = time.monotonic() - start
        report.write()
        print(f'\n{report.format()}\nall: {time.monotonic() - start:.0f} s', flush=True)


if __name__ == '__main__':
    main()
