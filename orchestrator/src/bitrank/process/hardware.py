"""Describe the machine in one line."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import psutil
import torch


def hardware(device: str) -> str:
    """Return the processor or accelerator, the number of cores, and the memory."""
    cores, memory = (
        psutil.cpu_count(logical=False) or psutil.cpu_count(),
        round(psutil.virtual_memory().total / 2**30),
    )
    # On Apple silicon the CPU and the GPU are one chip, so the CPU's name is used for both.
    name = torch.cuda.get_device_name() if device == "cuda" else _cpu_name()
    return f"{name}, {cores} cores, {memory} GiB"


def _cpu_name() -> str:
    if platform.system() == "Darwin":
        done = subprocess.run(
            ["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=False
        )
        return done.stdout.strip() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
