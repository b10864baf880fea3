# SPDX-License-Identifier: Apache-2.0
"""The paper's ablations, run by run, in processes of their own (`gan-mrcnn ablate`)."""

import argparse
import os
import pathlib
import subprocess
import sys
from typing import NamedTuple

from gan_mrcnn.evaluation.report import compare
from gan_mrcnn.utils import disk, files
from gan_mrcnn.utils.errors import UserError


class Row(NamedTuple):
    """A row of a table: the name of its runs, and what it changes."""

    name: str
    gan: str = 'combined'
    override: str = ''


# Rows of the same name are the same runs, wherever they stand.
_COMBINED = Row('combined')
TABLES = {
    # Loss function.
    '5': (Row('baseline', 'baseline'), Row('adversarial', 'adversarial_only'), _COMBINED),
    # Layers of the discriminators; five are the default.
    '6': (
        Row('layers3', override='task.gan.num_layers=3'),
        Row('layers4', override='task.gan.num_layers=4'),
        _COMBINED,
    ),
    # Ours: one discriminator alone, other weights, and what the authors' code has besides.
    'ours': (
        _COMBINED,
        Row('box_only', override='task.gan.mask_weight=0.0'),
        Row('mask_only', override='task.gan.box_weight=0.0'),
        Row('weights_half', override='task.gan.box_weight=0.0125,task.gan.mask_weight=0.25'),
        Row('weights_double', override='task.gan.box_weight=0.05,task.gan.mask_weight=1.0'),
        Row('attached', override='task.gan.detach_features=false'),
        Row(
            'fused',
            override='task.model.roi_aligner.fuse_levels=true,'
            'task.model.mask_roi_aligner.fuse_levels=true',
        ),
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


def commands(options, row: Row, seed: int) -> tuple[str, list[list[str]]]:
    """The folder of a run, and what trains and evaluates it."""
    folder = os.path.join(options.model_dir, f'{row.name}-{seed}')
    data = ['--dataset', options.dataset, '--cache_dir', options.cache_dir, '--model_dir', folder]
    if options.data_dir:
        data += ['--data_dir', options.data_dir]
    override = ['--params_override', row.override] if row.override else []
    train = ['train', *data, *options.forwarded, *override, '--gan', row.gan, '--seed', str(seed)]
    evaluate = ['evaluate', *data, '--split', options.eval_split]
    return folder, [train, evaluate]


def run_row(folder: str, split: str, steps: list[list[str]]) -> bool:
    """Trains and evaluates unless results exist; returns whether it did.

    Raises:
      UserError: the folder is of a run with other flags, or a program has failed.
    """
    marker = pathlib.Path(folder) / 'ablation.json'
    if marker.exists() and files.read_json(marker, None) != steps[0]:
        raise UserError(f'{folder} was trained with other flags; give another --model_dir')
    if (pathlib.Path(folder) / 'eval' / split / 'results.json').exists():
        return False
    with disk.errors_named(f'--model_dir {folder}'):
        files.write_json(marker, steps[0])
    for step in steps:
        status = subprocess.run([sys.executable, '-m', 'gan_mrcnn', *step]).returncode
        if status:
            raise UserError(
                f'gan-mrcnn {step[0]} failed with status {status}; run the same command again'
            )
    return True


def format_paper(table: str) -> str:
    """The paper's rows as text, '' where it has none."""
    rows = PAPER.get(table, {})
    lines = [
        f'    {name}: mask AP {mask:.4f}, box AP {box:.4f}' for name, (mask, box) in rows.items()
    ]
    return '\n'.join([f"The paper's Table {table}:", *lines]) if lines else ''


def run_table(options: argparse.Namespace) -> None:
    """Trains, evaluates and compares the rows that the flags of `gan-mrcnn ablate` name."""
    runs = [(row, seed) for seed in options.seeds for row in TABLES[options.table]]
    folders = {}
    disk.check_folder(options.model_dir, '--model_dir')
    for number, (row, seed) in enumerate(runs, start=1):
        folder, steps = commands(options, row, seed)
        print(f'[{number}/{len(runs)}] {folder}', flush=True)
        if not run_row(folder, options.eval_split, steps):
            print('    already evaluated, skipped', flush=True)
        folders[row, seed] = folder

    in_rows = [folders[row, seed] for row in TABLES[options.table] for seed in options.seeds]
    page = os.path.join(options.model_dir, f'table{options.table}')
    compare.run(
        in_rows, options.eval_split, options.data_dir, options.cache_dir, options.samples, page
    )
    if options.dataset == 'phone':
        print(format_paper(options.table))
