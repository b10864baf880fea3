# SPDX-License-Identifier: Apache-2.0
"""Repeats a step whose loss or gradient was not finite: gan-mrcnn replay RUN/nonfinite/step-N.npz.

The weights are those that the step met; nothing is changed. Prints every term of the loss, what the
images hold, and where in the networks the first number that is not finite comes up.
"""

import argparse

from gan_mrcnn.utils import cli


def add_flags(parser: argparse.ArgumentParser) -> None:
    cli.add_path(parser, 'file', help='nonfinite/step-N.npz in the folder of a run')


def main(options: argparse.Namespace) -> None:
    from gan_mrcnn.training import replay

    for line in replay.replay(options.file):
        print(line)
