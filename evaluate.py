#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Evaluates a trained model: `evaluate.py --dataset gland --data_dir DIR --model_dir RUN`."""

import sys

from gan_mrcnn import __main__ as program

if __name__ == '__main__':
    program.run('evaluate', sys.argv[1:], 'evaluate.py')
