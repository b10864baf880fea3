# SPDX-License-Identifier: Apache-2.0
"""How many CPU cores there are to share work among."""

import os


def num_cores() -> int:
    """Cores that this process may use, which may be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
