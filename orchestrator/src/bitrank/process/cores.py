"""Count the cores that this process may use."""

from __future__ import annotations

import os
import sys

import psutil


def usable_cores() -> int:
    """Return the number of physical cores, or the size of the process's CPU set if that is smaller.

    A CPU set comes from ``taskset``, ``docker --cpuset-cpus`` or a batch system. Two hardware threads of one
    core count as two in a CPU set. Time quotas (``docker --cpus``) are not detected.
    """
    physical = psutil.cpu_count(logical=False) or 1
    return min(physical, len(os.sched_getaffinity(0))) if sys.platform == "linux" else physical
