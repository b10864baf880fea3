# SPDX-License-Identifier: Apache-2.0
"""Non-maximum suppression that runs where the network runs: TensorFlow's has no kernel for GPUs."""

from custom_ops.nms.suppression import combined_non_max_suppression

__all__ = ['combined_non_max_suppression']
