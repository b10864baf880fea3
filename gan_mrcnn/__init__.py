# SPDX-License-Identifier: Apache-2.0
"""GAN Mask R-CNN: the Model Garden's Mask R-CNN with adversarial losses on boxes and masks."""

from gan_mrcnn import compat  # noqa: F401  (before anything imports TensorFlow)

__version__ = '0.2.0'
