"""Device, dtype and thread count from hardware flags, never from timings, for a reproducible choice."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import torch

from bitrank_trainer.errors import TrainError

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
# Device → whether this machine has it; the fastest first.
DEVICES: dict[str, Callable[[], bool]] = {
    "cuda": lambda: torch.cuda.is_available(),
    "mps": lambda: torch.backends.mps.is_available(),
    "cpu": lambda: True,
}


def choose_device(requested: str = "auto") -> str:
    """``requested``, or for ``auto`` the fastest of cuda, mps and cpu.

    Raises :class:`TrainError` if ``requested`` is not available.
    """
    here = available_devices()
    if requested == "auto":
        return here[0]
    if requested not in here:
        raise TrainError(f"no device {requested!r} on this machine; it has {', '.join(here)}")
    return requested


def available_devices() -> list[str]:
    """Available devices, fastest first."""
    return [name for name, is_here in DEVICES.items() if is_here()]


def choose_dtype(device: str) -> str:
    """Default compute dtype of ``device``: ``bf16`` if the hardware multiplies it fast.

    Otherwise ``fp16`` on accelerators, which requires a loss scale, and ``fp32`` on CPUs.
    """
    if device == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if device == "mps":
        return "bf16" if torch.backends.mps.is_macos_or_newer(14, 0) else "fp16"
    return "bf16" if cpu_has_bf16() else "fp32"


def width_multiple(device: str, dtype: torch.dtype) -> int:
    """Multiple to which sequence lengths are padded: 8 or 1.

    8 if every new shape is compiled or planned before its first product (16-bit products on a CPU, 16-bit
    attention on CUDA); 1 elsewhere, because padding costs compute.
    """
    return 8 if device in {"cpu", "cuda"} and dtype != torch.float32 else 1


def cpu_has_bf16() -> bool:
    """Whether this CPU has bf16 multiply instructions (AVX-512 BF16, AMX, or Arm's)."""
    if platform.system() == "Darwin":
        return False
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return any(flag in flags for flag in ("avx512_bf16", "amx_bf16", " bf16"))


def pin_threads(threads: int | None = None, processes: int = 1) -> int:
    """Set the number of CPU threads to ``threads`` and return it.

    The default is that of :func:`usable_threads`. Results depend on the number, so the run records it.
    """
    count = threads or usable_threads(processes)
    torch.set_num_threads(count)
    return count


def usable_threads(processes: int = 1) -> int:
    """The threads that this process may use, as one of the ``processes`` of a run.

    ``OMP_NUM_THREADS`` if it is set, which is for one process and at most the cores: a user or a cluster
    reserved as many. Else one per physical core available to this process, divided by ``processes``.
    """
    given = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    if given.isdigit() and int(given):
        return min(int(given), _cores())
    return max(1, _cores() // processes)


def _cores() -> int:
    physical = psutil.cpu_count(logical=False) or 1
    return min(physical, len(os.sched_getaffinity(0))) if sys.platform == "linux" else physical
