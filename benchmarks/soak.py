# SPDX-License-Identifier: Apache-2.0
"""Memory, open files and time of a step over some thousands of steps and many evaluations.

    python benchmarks/soak.py [--steps 3000] [--plot docs/images/soak.png] [--json F]

Runs `train.py` on the demo glands with a tiny network and both discriminators, with an evaluation
and a checkpoint every 250 steps, and samples the process from outside, once a second. From the
fourth evaluation on, when the allocator has come to rest, a line is fitted to its resident memory.
A slope above `MOST_GROWTH`, or files that stay open, end the program with status 1.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple, Optional

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

import cv2  # noqa: E402
import numpy as np  # noqa: E402

from gan_mrcnn.utils import cli, progress_bar, visualization  # noqa: E402

# MB for 1000 steps with four evaluations; the allocator alone moves it up and down by 20.
MOST_GROWTH = 20.0
# Files that may be open at the end beyond those after the warm-up.
MOST_FILES = 2
# Steps from one evaluation, and checkpoint, to the next.
EVERY = 250
WARM_UP = 4 * EVERY

SETTINGS = f"""
task:
  model:
    input_size: [64, 128, 3]
    backbone: {{resnet: {{model_id: 18}}}}
    decoder: {{fpn: {{num_filters: 32}}}}
    rpn_head: {{num_filters: 32}}
    detection_head: {{fc_dims: 32}}
    mask_head: {{num_convs: 1, num_filters: 32}}
    roi_generator: {{num_proposals: 20, test_num_proposals: 20}}
    roi_sampler: {{num_sampled_rois: 16}}
    mask_sampler: {{num_sampled_masks: 4}}
    detection_generator: {{max_num_detections: 20}}
  gan: {{num_layers: 3}}
  train_data:
    global_batch_size: 2
    parser: {{train_short_side: [50, 64], aug_rand_hflip: true, max_num_instances: 20}}
  validation_data:
    global_batch_size: 2
    parser: {{test_short_side: 64}}
trainer:
  steps_per_loop: 5
  summary_interval: 5
  checkpoint_interval: {EVERY}
  validation_interval: {EVERY}
"""


class Samples(NamedTuple):
    """What was seen of a run.

    step, rss, files: steps done, resident MB and open files at each sample.
    report_step, step_seconds: last step of each report of the run, and the mean time of its steps.
    """

    step: np.ndarray
    rss: np.ndarray
    files: np.ndarray
    report_step: np.ndarray
    step_seconds: np.ndarray


def watch(folder: pathlib.Path, steps: int) -> Samples:
    """Trains in `folder` from start to end and samples the process once a second."""
    (folder / 'soak.yaml').write_text(SETTINGS)
    command = [sys.executable, str(REPOSITORY / 'train.py'), '--dataset', 'gland', '--seed', '1']
    command += ['--config_file', 'soak.yaml', '--model_dir', 'run', '--cache_dir', 'cache']
    command += ['--params_override', f'trainer.train_steps={steps}']
    # There is no data/gland in `folder`, so that it is the demo set that is taken.
    with open(folder / 'stderr', 'w') as stderr:
        process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=stderr)
    samples = []
    try:
        with progress_bar.Bar(total=steps, desc='soak', unit='step') as bar:
            while process.poll() is None:
                sample = sample_process(process.pid)
                if sample:
                    samples.append((time.time(), *sample))
                bar.update(step_of(folder / 'run') - bar.n)
                time.sleep(1)
    finally:
        process.kill()
        process.wait()
    if process.returncode:
        tail = (folder / 'stderr').read_text()[-2000:]
        sys.exit(f'the run ended with status {process.returncode}:\n{tail}')
    moments, report_step, step_seconds = reports(folder / 'run' / 'train')
    # From the first step to the last; what it takes to start and to end is another matter.
    samples = np.array([sample for sample in samples if moments[0] <= sample[0] <= moments[-1]])
    seconds, rss, files = samples.T
    return Samples(np.interp(seconds, moments, report_step), rss, files, report_step, step_seconds)


def sample_process(pid: int) -> Optional[tuple[float, int]]:
    """Resident MB and open files of a process; None where it has just ended."""
    try:
        pages = int(pathlib.Path(f'/proc/{pid}/statm').read_text().split()[1])
        files = len(os.listdir(f'/proc/{pid}/fd'))
    except OSError:
        return None
    return pages * os.sysconf('SC_PAGE_SIZE') / 1e6, files


def step_of(model_dir: pathlib.Path) -> int:
    try:
        return json.loads((model_dir / 'status.json').read_text())['step']
    except OSError:
        return 0


def reports(folder: pathlib.Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Moment, step and seconds a step of every report in the event files."""
    import tensorflow as tf

    found = []
    for path in sorted(folder.glob('events.out.tfevents.*')):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                if value.tag == 'steps_per_second':
                    rate = float(tf.make_ndarray(value.tensor))
                    found.append((event.wall_time, event.step, 1 / rate))
    return tuple(np.array(found).T)


def judge(samples: Samples) -> dict[str, float]:
    """Growth of memory and files after the warm-up, and the time of a step early and late."""
    late = samples.step > WARM_UP
    slope = np.polyfit(samples.step[late], samples.rss[late], 1)[0]
    # The report after an evaluation has its time, too.
    plain = (samples.report_step % EVERY > 5) & (samples.report_step > WARM_UP)
    first, second = np.array_split(samples.step_seconds[plain], 2)
    return {
        'steps': int(samples.report_step[-1]),
        'evaluations': int(samples.report_step[-1]) // EVERY,
        'rss_mb_after_warm_up': round(float(np.median(samples.rss[late][:20])), 1),
        'rss_mb_at_the_end': round(float(np.median(samples.rss[late][-20:])), 1),
        'rss_mb_per_1000_steps': round(1000 * float(slope), 2),
        'files_after_warm_up': int(np.median(samples.files[late][:20])),
        'files_at_the_end': int(np.median(samples.files[late][-20:])),
        'step_seconds_first_half': round(float(np.median(first)), 4),
        'step_seconds_second_half': round(float(np.median(second)), 4),
    }


# The plot.

_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM = 900, 190, 90, 34, 30
_INK, _GRID = (60, 60, 60), (225, 225, 225)
# Okabe and Ito's, RGB.
_COLOURS = ((0, 114, 178), (213, 94, 0), (0, 158, 115))


def draw(samples: Samples) -> np.ndarray:
    """Three panels over the steps, [H, W, 3] RGB uint8."""
    panels = (
        ('resident memory, MB', samples.step, samples.rss),
        ('open files', samples.step, samples.files),
        ('seconds a step (mean of five)', samples.report_step, samples.step_seconds),
    )
    last = float(samples.report_step[-1])
    return np.concatenate([_panel(*panel, last, colour) for panel, colour in zip(panels, _COLOURS)])


def _panel(title, x, y, last, colour) -> np.ndarray:
    """A curve on axes that begin at 0; the highest percent, such as evaluations, is cut off."""
    canvas = np.full([_HEIGHT + _BOTTOM, _WIDTH, 3], 255, np.uint8)
    top = 1.15 * float(np.percentile(y, 99))

    def place(a, b):
        across = _LEFT + a / last * (_WIDTH - _LEFT - 30)
        return round(across), round(_HEIGHT - min(b / top, 1) * (_HEIGHT - _TOP))

    def text(words, at, size=0.45):
        cv2.putText(canvas, words, at, cv2.FONT_HERSHEY_SIMPLEX, size, _INK, 1, cv2.LINE_AA)

    for share in (0, 0.5, 1):
        cv2.line(canvas, place(0, share * top), place(last, share * top), _GRID, 1)
        text(f'{share * top:.3g}' if top < 10 else f'{share * top:.0f}',
             (20, place(0, share * top)[1] + 5))  # fmt: skip
    for step in range(0, int(last) + 1, 2 * EVERY):
        cv2.line(canvas, place(step, 0), place(step, top), _GRID, 1)
        text(str(step), (place(step, 0)[0] - 15, _HEIGHT + 18))
    points = np.array([place(a, b) for a, b in zip(x, y)], np.int32)
    cv2.polylines(canvas, [points], False, colour, 1, cv2.LINE_AA)
    text(title, (_LEFT, 22), 0.55)
    return canvas


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--steps', type=int, default=3000)
    parser.add_argument('--plot', help='PNG to draw')
    parser.add_argument('--json', help='file for the figures and what they were made from')
    options = parser.parse_args()
    if options.steps < WARM_UP + EVERY:
        parser.error(f'--steps must be at least {WARM_UP + EVERY}: the warm-up takes {WARM_UP}')
    cli.silence_start_up()
    with tempfile.TemporaryDirectory() as folder:
        samples = watch(pathlib.Path(folder), options.steps)
    figures = judge(samples)
    for name, value in figures.items():
        print(f'{name:>26}: {value}')
    if options.json:
        seen = {name: values.tolist() for name, values in samples._asdict().items()}
        pathlib.Path(options.json).write_text(json.dumps({**figures, 'samples': seen}) + '\n')
    if options.plot:
        visualization.save_png(options.plot, draw(samples))
    if figures['rss_mb_per_1000_steps'] > MOST_GROWTH:
        sys.exit(f'memory grows by more than {MOST_GROWTH} MB in 1000 steps')
    if figures['files_at_the_end'] > figures['files_after_warm_up'] + MOST_FILES:
        sys.exit('files stay open')


if __name__ == '__main__':
    main()
