"""The cores that this process may compute on."""

from __future__ import annotations

import os
import sys

import psutil


def usable_cores() -> int:
    """The physical cores, or as many as a CPU set (``taskset``, ``docker --cpuset-cpus``, a batch system) leaves this process.

    Two hardware threads of one core count as two in a set, and quotas of time (``docker --cpus``) are not seen.
    """
    physical = psutil.cpu_count(logical=False) or 1
    return min(physical, len(os.sched_getaffinity(0))) if sys.platform == "linux" else physical
