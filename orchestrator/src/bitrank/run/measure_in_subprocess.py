"""Measurements that need the whole model in 16 bits, in a process of their own.

A run may not have the memory for that model, and its peak memory must not include it.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from bitrank.process.worker import begin_worker
from bitrank.spec.run_spec import RunSpec


def measure_in_subprocess(gather: Callable[[RunSpec], Path], place: Path, spec: RunSpec) -> Path:
    """The folder of ``gather(spec)``, which another process builds if ``place`` does not exist.

    ``gather`` is a function of a module, and returns ``place`` at once if it is complete. Raises as it does.
    """
    if place.is_dir():
        return gather(spec)
    with ProcessPoolExecutor(1, get_context("spawn"), initializer=begin_worker) as pool:
        return pool.submit(gather, spec).result()
