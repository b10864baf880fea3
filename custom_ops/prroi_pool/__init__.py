# SPDX-License-Identifier: Apache-2.0
"""Precise RoI Pooling (PrRoIPool): the path of the gradient from RoI features to boxes (Fig. 2)."""

from custom_ops.prroi_pool.prroi_pool_tf import prroi_pool

__all__ = ['prroi_pool']
