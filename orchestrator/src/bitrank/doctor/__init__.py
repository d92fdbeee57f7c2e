"""``bitrank doctor``: report this machine's hardware and software, and how to install missing parts.

Formats, devices and speeds are tested on the machine, not looked up.
"""

from __future__ import annotations

from typing import Any

from bitrank_data import ASSETS, asset_present, cache_dir

from bitrank.doctor.formats import try_formats
from bitrank.doctor.machine import devices, machine, memory, threads
from bitrank.doctor.show import print_report
from bitrank.doctor.software import LIBRARIES, programs, version_of
from bitrank.doctor.speed import gflops

__all__ = ["examine", "print_report"]


def examine() -> dict[str, Any]:
    """Return the whole report as plain data.

    This takes some seconds: each dtype is timed, and each backend quantizes and multiplies a small matrix.
    """
    from bitrank_quant import available_overrides, kernels_status
    from bitrank_trainer import DTYPES, available_devices, choose_device, choose_dtype

    # Imported here: its own processes run this module as a program, which Python warns of if the package has
    # imported it.
    from bitrank.doctor.parallelism import measure_pace

    device = choose_device()
    dtype = choose_dtype(device)
    software = programs()
    return {
        "machine": machine(device),
        "memory": memory(),
        "threads": threads(),
        "devices": devices(),
        "chosen": {"device": device, "dtype": dtype, "loss_scaling": dtype == "fp16"},
        "gflops": {name: _gflops_by_dtype(name) for name in available_devices()},
        "runs_at_once": measure_pace(),
        "kernels": kernels_status(),
        "quant_backends": available_overrides(device, DTYPES[dtype]),
        "formats": try_formats(device, DTYPES[dtype]),
        "libraries": {name: version_of(name) for name in LIBRARIES},
        "assets": {
            name: "in the cache" if asset_present(name) else f"to fetch, {a.megabytes} MB"
            for name, a in ASSETS.items()
        },
        "cache": str(cache_dir()),
        "programs": {name: found.state for name, found in software.items()},
        "to_install": {name: found.install for name, found in software.items() if found.install},
    }


def _gflops_by_dtype(device: str) -> dict[str, float | str]:
    """Return the GFLOP/s of matrix products on ``device`` by dtype, or the reason why a dtype fails."""
    from bitrank_trainer import DTYPES

    return {text: gflops(text, device) for text in DTYPES}
