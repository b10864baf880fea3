# SPDX-License-Identifier: Apache-2.0
"""Ablations: arms times seeds, trained, evaluated and compared (`gan-mrcnn ablate`).

An arm is what is trained: a name and the settings that it changes. Tables of arms are built in, and
a file can hold others. The first arm is the reference.
"""

import argparse
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from gan_mrcnn.evaluation import jobs
from gan_mrcnn.evaluation.report import ablation
from gan_mrcnn.utils import cli, disk, files, paths, yaml_files
from gan_mrcnn.utils.errors import UserError

# In the folder of a run: how it was trained.
_MARKER = 'ablation.json'


class Arm(NamedTuple):
    """The name of its runs, and what it changes; '' for nothing."""

    name: str
    gan: str = 'combined'
    override: str = ''
    config_file: str = ''


# Arms of the same name are the same runs, wherever they stand.
_BASELINE = Arm('baseline', 'baseline')
_COMBINED = Arm('combined')
TABLES = {
    # The paper's Table 5: loss function.
    '5': (_BASELINE, Arm('adversarial', 'adversarial_only'), _COMBINED),
    # The paper's Table 6: layers of the discriminators; five are the default.
    '6': (
        Arm('layers3', override='task.gan.num_layers=3'),
        Arm('layers4', override='task.gan.num_layers=4'),
        _COMBINED,
    ),
    # One discriminator alone, other weights, and what the authors' code has besides.
    'ours': (
        _COMBINED,
        Arm('box_only', override='task.gan.mask_weight=0.0'),
        Arm('mask_only', override='task.gan.box_weight=0.0'),
        Arm('weights_half', override='task.gan.box_weight=0.0125,task.gan.mask_weight=0.25'),
        Arm('weights_double', override='task.gan.box_weight=0.05,task.gan.mask_weight=1.0'),
        Arm('attached', override='task.gan.detach_features=false'),
        Arm(
            'fused',
            override='task.model.roi_aligner.fuse_levels=true,'
            'task.model.mask_roi_aligner.fuse_levels=true',
        ),
    ),
    # What else than an adversary could explain a gain: a mask loss that weighs as much more as the
    # adversary was seen to act like (docs/results.md), features that nobody trained, a gradient
    # from other RoIs.
    'controls': (
        _BASELINE,
        Arm('heavier_mask', 'baseline', 'task.losses.mask_weight=1.5'),
        _COMBINED,
        Arm('frozen', override='task.gan.control=frozen'),
        Arm('shuffled', override='task.gan.control=shuffled'),
    ),
}
# The paper's figures, on the phones: mask AP and box AP by row.
PAPER = {
    '5': {
        'baseline': (0.5718, 0.5486),
        'adversarial': (0.5684, 0.5620),
        'combined': (0.5923, 0.5844),
    },
    '6': {'layers3': (0.5624, 0.547), 'layers4': (0.574, 0.55), 'combined': (0.5923, 0.5844)},
}


def read_arms(path: str) -> tuple[Arm, ...]:
    """The arms of a YAML file: `name: {gan: ..., override: ..., config_file: ...}`, each optional.

    Raises:
      UserError: naming what is wrong with it.
    """
    try:
        content = yaml_files.parse(pathlib.Path(path).read_bytes(), path)
    except OSError as error:
        raise UserError(f'--arms {path} cannot be read ({error.strerror})') from error
    if not isinstance(content, Mapping) or not content:
        raise UserError(
            f'{path} has no arms; write one a line, such as "baseline: {{gan: baseline}}"'
        )
    return tuple(_read_arm(path, name, values or {}) for name, values in content.items())


def _read_arm(path: str, name: Any, values: Any) -> Arm:
    known = Arm._fields[1:]
    # It names folders.
    if not isinstance(name, str) or not re.fullmatch(r'\w[\w.+=-]*', name):
        raise UserError(f'{path}: the arm {name!r} wants a name of letters, digits, ".", "_", "-"')
    if not isinstance(values, Mapping) or not set(values) <= set(known):
        raise UserError(f'{path}: {name} is {values!r}; valid there: {", ".join(known)}')
    for key, value in values.items():
        if not isinstance(value, str):
            raise UserError(f'{path}: {key} of {name} is {value!r}; give a text, in quotes')
    arm = Arm(name, **values)
    if arm.gan not in cli.GAN_MODES:
        raise UserError(f'{path}: gan of {name} is {arm.gan}; give {", ".join(cli.GAN_MODES)}')
    if arm.config_file:
        arm = arm._replace(config_file=paths.from_user(arm.config_file, f'{path}: config_file'))
    return arm


def make_job(options: argparse.Namespace, arm: Arm, seed: int) -> jobs.Job:
    """What trains and evaluates an arm with a seed."""
    name = f'{arm.name}-{seed}'
    folder = os.path.join(options.model_dir, name)
    data = ['--dataset', options.dataset, '--cache_dir', options.cache_dir, '--model_dir', folder]
    if options.data_dir:
        data += ['--data_dir', options.data_dir]
    # The arm's own come last, and win.
    own = ['--config_file', arm.config_file] if arm.config_file else []
    own += ['--params_override', arm.override] if arm.override else []
    train = ['train', *data, *options.forwarded, *own, '--gan', arm.gan, '--seed', str(seed)]
    evaluate = ['evaluate', *data, '--split', options.eval_split]
    results = pathlib.Path(folder) / 'eval' / options.eval_split / 'results.json'
    return jobs.Job(name, pathlib.Path(folder), train, evaluate, results)


def prepare(job: jobs.Job) -> None:
    """Makes the folder of a run and notes how it is trained.

    Raises:
      UserError: the folder is of a run with other flags, or cannot be written.
    """
    marker = job.folder / _MARKER
    if marker.exists() and files.read_json(marker, None) != job.train:
        raise UserError(f'{job.folder} was trained with other flags; give another --model_dir')
    with disk.errors_named(f'--model_dir {job.folder}'):
        files.write_json(marker, job.train)


def format_paper(table: str) -> str:
    """The paper's rows as text, '' where it has none."""
    rows = PAPER.get(table, {})
    lines = [
        f'    {name}: mask AP {mask:.4f}, box AP {box:.4f}' for name, (mask, box) in rows.items()
    ]
    return '\n'.join([f"The paper's Table {table}:", *lines]) if lines else ''


def run(options: argparse.Namespace) -> None:
    """Trains, evaluates and compares what the flags of `gan-mrcnn ablate` name.

    Raises:
      UserError: runs have failed; the page of the others is written all the same.
    """
    name = options.table or pathlib.Path(options.arms).stem
    arms = TABLES[options.table] if options.table else read_arms(options.arms)
    disk.check_folder(options.model_dir, '--model_dir')
    plan = {
        (arm.name, seed): make_job(options, arm, seed) for seed in options.seeds for arm in arms
    }
    for job in plan.values():
        prepare(job)
    done = [job for job in plan.values() if job.results.exists()]
    if done:
        print(f'already evaluated: {", ".join(job.name for job in done)}', flush=True)
    failures = jobs.run_all([job for job in plan.values() if job not in done], options.jobs)
    _report(options, name, arms, plan, failures)
    if options.table and options.dataset == 'phone':
        print(format_paper(options.table))
    if failures:
        texts = [f'{failed}: {reason}' for failed, reason in failures.items()]
        raise UserError(
            f'{len(failures)} of {len(plan)} runs failed; the same command tries them again: '
            f'{"; ".join(texts)}'
        )


def _report(
    options: argparse.Namespace,
    name: str,
    arms: Sequence[Arm],
    plan: Mapping[tuple[str, int], jobs.Job],
    failures: Mapping[str, str],
) -> None:
    """The page, the JSON and the printed figures of the runs that are evaluated."""
    evaluated = {
        arm.name: [seed for seed in options.seeds if plan[arm.name, seed].results.exists()]
        for arm in arms
    }
    if not any(evaluated.values()):
        return
    folders = {key: str(job.folder) for key, job in plan.items()}
    loaded = ablation.load(
        {arm.name: {seed: folders[arm.name, seed] for seed in evaluated[arm.name]} for arm in arms},
        options.eval_split,
        options.data_dir,
        options.cache_dir,
    )
    result = ablation.compare(loaded, options.samples)
    result['settings'] = {arm.name: arm._asdict() for arm in arms}
    result['failed'] = dict(failures)
    path = pathlib.Path(options.model_dir) / f'ablation-{name}.html'
    with disk.errors_named(path):
        ablation.write(loaded, result, path)
    print(ablation.format_text(result))
    print(f'report: {path}')
