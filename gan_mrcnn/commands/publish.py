# SPDX-License-Identifier: Apache-2.0
"""Writes weights that can be passed on: gan-mrcnn publish RUN OUT.

OUT gets model.safetensors (the generator's weights as float16, with its settings and classes),
params.yaml, class_names.txt, model.json, README.md (the model card, to be completed) and
SHA256SUMS. train, evaluate, predict and export take it by --weights.
"""

import argparse

from gan_mrcnn.utils import cli


def add_flags(parser: argparse.ArgumentParser) -> None:
    cli.add_path(parser, 'run', metavar='RUN', help='folder that gan-mrcnn train wrote')
    cli.add_path(parser, 'out', metavar='OUT', help='a new folder')
    cli.add_checkpoint_flag(parser)
    cli.add_path(
        parser, '--data_dir', help='where the data set is, if it was moved; it names the classes'
    )


def main(options: argparse.Namespace) -> None:
    from gan_mrcnn.prediction import checkpoint
    from gan_mrcnn.serving import publish

    publish.check_new(options.out)
    opened = checkpoint.open_run(options.run, options.checkpoint, data_dir=options.data_dir)
    published = publish.publish(opened, options.run, options.out)
    print(
        f'published {opened.card.checkpoint} (step {opened.card.step}) in {options.out}, '
        f'{published.num_bytes / 1e6:.0f} MB; in float32: {published.num_float32} of '
        f'{published.num_tensors} tensors'
    )
    for text in published.notes:
        print(text)
