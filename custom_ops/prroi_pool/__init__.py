# SPDX-License-Identifier: Apache-2.0
"""Precise RoI Pooling (PrRoIPool), the path of the gradient from RoI features to boxes (Fig. 2),
and the RoIAlign of training."""

from custom_ops.prroi_pool.multilevel import multilevel_prroi_pool, multilevel_roi_align
from custom_ops.prroi_pool.pooling import PrRoIPool, is_compiled, prroi_pool, serving

__all__ = [
    'PrRoIPool',
    'is_compiled',
    'multilevel_prroi_pool',
    'multilevel_roi_align',
    'prroi_pool',
    'serving',
]
