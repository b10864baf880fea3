# SPDX-License-Identifier: Apache-2.0
"""Precise RoI Pooling (PrRoIPool): the path of the gradient from RoI features to boxes (Fig. 2)."""

from custom_ops.prroi_pool.multilevel import multilevel_prroi_pool
from custom_ops.prroi_pool.pooling import PrRoIPool, prroi_pool, serving

__all__ = ['PrRoIPool', 'multilevel_prroi_pool', 'prroi_pool', 'serving']
