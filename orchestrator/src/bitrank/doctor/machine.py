"""Describe the machine: processor, memory, accelerators and threads."""

from __future__ import annotations

import os
import platform
import shutil
from pathlib import Path
from typing import Any

import psutil

from bitrank.process.cores import usable_cores
from bitrank.process.environment import mps_environment

_GIB = 2**30
_BUILDS = {
    "nvidia-smi": "make install TORCH=cuda",
    "rocm-smi": "install torch's ROCm build into this environment",
}
_CONTAINER_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def machine(device: str) -> dict[str, str]:
    from bitrank.process.hardware import hardware

    return {"hardware": hardware(device), "system": platform.platform(), "python": platform.python_version()}


def memory() -> dict[str, str]:
    """Return memory sizes in GiB: the machine's, the container's limit, and each accelerator's."""
    seen = psutil.virtual_memory()
    shown = {"total": f"{seen.total / _GIB:.1f} GiB", "available": f"{seen.available / _GIB:.1f} GiB"}
    if (limit := _container_limit()) is not None and limit < seen.total:
        shown["limit of this container"] = f"{limit / _GIB:.1f} GiB"
    return shown | _device_memory()


def threads() -> dict[str, Any]:
    """Return the core counts, torch's number of threads, and that of runs whose spec sets none."""
    import torch
    from bitrank_trainer import usable_threads

    requested = os.environ.get("OMP_NUM_THREADS")
    physical, logical = psutil.cpu_count(logical=False), psutil.cpu_count()
    cores = {
        "physical_cores": physical,
        "logical_cores": logical,
        "usable_cores": usable_cores(),
        "torch": torch.get_num_threads(),
        "default_of_runs": usable_threads(),
    }
    return cores | ({"OMP_NUM_THREADS": requested} if requested else {})


def devices() -> dict[str, str]:
    """Return for every kind of accelerator its description, or the reason why it is unavailable."""
    import torch

    return {"cuda": _cuda(torch), "mps": _mps(torch), "cpu": "here"}


def _cuda(torch: Any) -> str:
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        bf16 = (
            "bf16"
            if torch.cuda.is_bf16_supported(including_emulation=False)
            else "no bf16: fp16 with a loss scale"
        )
        return (
            f"{torch.cuda.device_count()} × {torch.cuda.get_device_name()}, "
            f"capability {major}.{minor}, {bf16}"
        )
    if torch.version.cuda is None and torch.version.hip is None:
        for tool, command in _BUILDS.items():
            if shutil.which(tool):
                return f"there is a GPU, but this torch is a CPU build: {command}"
    return "no GPU that torch can use"


def _mps(torch: Any) -> str:
    if not torch.backends.mps.is_available():
        return "not Apple silicon" if platform.system() != "Darwin" else "this torch or macOS has no MPS"
    on = {**mps_environment("mps"), **os.environ}.get("PYTORCH_ENABLE_MPS_FALLBACK") == "1"
    missing = "run on the CPU, with a note" if on else "fail: you have set PYTORCH_ENABLE_MPS_FALLBACK=0"
    return f"here; tensors are kept under 2³² bytes; operations it lacks {missing}"


def _device_memory() -> dict[str, str]:
    import torch

    shown = {}
    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        free, total = torch.cuda.mem_get_info(number)
        shown[f"cuda:{number}"] = f"{total / _GIB:.1f} GiB, {free / _GIB:.1f} free"
    if torch.backends.mps.is_available():
        shown["mps"] = (
            f"{torch.mps.recommended_max_memory() / _GIB:.1f} GiB recommended of the machine's memory"
        )
    return shown


def _container_limit() -> int | None:
    for path in _CONTAINER_LIMITS:
        try:
            return int(path.read_text())
        except (OSError, ValueError):
            continue
    return None
