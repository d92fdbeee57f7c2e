"""``bitrank doctor``: what this machine has, what works on it, and how to get the rest. Backends are tried, not looked up."""

from __future__ import annotations

import platform
import shutil
import time
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

import psutil
from bitrank_data import ASSETS, asset_present, cache_dir
from rich.table import Table

from bitrank.display import console
from bitrank.pace import measure_pace

_LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "optimum-quanto", "datasets", "mlflow", "gguf")
_TRIED = ("nf4", "nf4-dq", "fp4", "llm-int8", "int8", "int4-g64", "int3-g64", "int2-g64")


def examine() -> dict[str, Any]:
    """Everything as plain data. Takes some seconds: each backend quantizes and multiplies a small matrix."""
    from bitrank_quant import available_overrides, kernels_status
    from bitrank_trainer import available_devices, choose_device, choose_dtype

    from bitrank.record import hardware

    device = choose_device()
    return {
        "machine": {"hardware": hardware(device), "system": platform.platform(), "python": platform.python_version()},
        "memory_gib": {
            "total": round(psutil.virtual_memory().total / 2**30, 1),
            "available": round(psutil.virtual_memory().available / 2**30, 1),
        },
        "devices": available_devices(),
        "chosen": {"device": device, "dtype": choose_dtype(device), "threads": psutil.cpu_count(logical=False)},
        "gflops": {dtype: _gflops(dtype, device) for dtype in ("fp32", "bf16")},
        "runs_at_once": measure_pace(),
        "kernels": kernels_status(),
        "quant_backends": available_overrides(device),
        "formats": _formats(device),
        "libraries": {name: _version(name) for name in _LIBRARIES},
        "assets": {name: "in the cache" if asset_present(name) else f"to fetch, {a.megabytes} MB" for name, a in ASSETS.items()},
        "cache": str(cache_dir()),
        "missing": _missing(),
    }


def _formats(device: str) -> dict[str, dict[str, str]]:
    """Format → backend → "works" or what went wrong."""
    from bitrank_quant import BACKENDS, parse_format, probe

    found: dict[str, dict[str, str]] = {}
    for text in _TRIED:
        fmt = parse_format(text)
        for name, backend in BACKENDS.items():
            if backend.serves(fmt):
                found.setdefault(text, {})[name] = backend.missing(device) or probe(backend, fmt, device) or "works"
    return found


def _gflops(dtype: str, device: str) -> float:
    """Matrix products of 1024 × 1024 in half a second."""
    import torch
    from bitrank_trainer import DTYPES

    left, right = (torch.randn(1024, 1024, device=device, dtype=DTYPES[dtype]) for _ in range(2))
    left @ right
    started, count = time.perf_counter(), 0
    while (spent := time.perf_counter() - started) < 0.5:
        (left @ right).sum().item()
        count += 1
    return round(count * 2 * 1024**3 / spent / 1e9, 1)


def _missing() -> dict[str, str]:
    """What is not here, and how to get it."""
    hints = {
        "kernels": "optional: pip install kernels gives bitsandbytes a faster CPU product",
        "chromium": "only for the browser tests: apt-get install chromium chromium-driver",
    }
    absent = {"kernels": find_spec("kernels") is None, "chromium": shutil.which("chromium") is None}
    return {name: hints[name] for name, gone in absent.items() if gone}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed: make install"


def print_report(report: dict[str, Any]) -> None:
    """The report as a table on the terminal."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for section, content in report.items():
        table.add_row(section.replace("_", " "), _text(content))
    console().print(table)


def _text(content: Any) -> str:
    if isinstance(content, dict):
        return "\n".join(f"{key}: {_text(value).replace(chr(10), '; ')}" for key, value in content.items()) or "nothing"
    return ", ".join(str(part) for part in content) if isinstance(content, list) else str(content)
