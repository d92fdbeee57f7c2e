"""Memory and throughput of this process."""

from __future__ import annotations

import contextlib
import ctypes
import re
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch

_MIB = 1024.0
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # parameters of mallopt in malloc.h


def peak_memory_mib() -> float:
    """Peak resident memory of this process in MiB.

    On Linux it is ``VmHWM``: ``ru_maxrss`` is inherited through exec, so a child would report its parent's
    peak.
    """
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / _MIB / (_MIB if sys.platform == "darwin" else 1.0)
    match = re.search(r"VmHWM:\s+(\d+) kB", status)
    return float(match[1]) / _MIB if match else 0.0


def resident_bytes() -> int:
    """Current resident memory of this process in bytes."""
    return int(psutil.Process().memory_info().rss)


def keep_memory() -> None:
    """Let glibc keep up to 1 GiB of freed memory for later tensors; no effect on other C libraries.

    Otherwise the large temporaries of every pass are mapped, zeroed page by page and unmapped, a quarter of
    the time of a pass through SmolLM2. The setting holds for the rest of the process; :func:`release_memory`
    still returns the memory to the system.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            library = ctypes.CDLL("libc.so.6")
            library.mallopt(_M_MMAP_THRESHOLD, 2**28)
            library.mallopt(_M_TRIM_THRESHOLD, 2**30)


def release_memory() -> None:
    """Return freed memory kept by glibc or tcmalloc to the system; other allocators keep little."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        if has_tcmalloc():
            ctypes.CDLL(None).MallocExtension_ReleaseFreeMemory()


def has_tcmalloc() -> bool:
    """Whether gperftools' tcmalloc is preloaded into this process (Linux)."""
    return sys.platform == "linux" and hasattr(ctypes.CDLL(None), "MallocExtension_ReleaseFreeMemory")


def device_memory_mib(device: str) -> float:
    """Memory of the accelerator in MiB: peak on CUDA, current allocation on MPS, 0 on the CPU.

    On CUDA all memory that torch has reserved: graphs keep blocks between replays that count as free.
    """
    if device == "cuda":
        return torch.cuda.max_memory_reserved() / _MIB**2
    if device == "mps":
        return torch.mps.driver_allocated_memory() / _MIB**2
    return 0.0


@dataclass
class Throughput:
    """Unpadded tokens and the seconds spent on them, without evaluation and checkpoints."""

    tokens: int = 0
    seconds: float = 0.0
    _started: float = field(default=0.0, repr=False)

    def __enter__(self) -> Throughput:
        self._started = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self._started

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0
