"""The environment variables of a run's process."""

from __future__ import annotations

import os
import platform

from bitrank.process.tcmalloc import heap_environment
from bitrank.spec.run_spec import RunSpec

_SPINS = "20000"
_SHAPES, _FEWER = 256, 128


def set_own_environment() -> None:
    """Set the environment of a command that computes in its own process (``plan``, ``study``, ``merge``).

    Must be called before torch is imported. It sets how threads wait, and a smaller oneDNN cache than a
    run's: the batches of these commands have many widths, each of which occurs only a few times. On Apple
    silicon it lets operations that MPS lacks run on the CPU. Variables that the user has set are kept.
    """
    for name, value in mps_environment("auto").items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(_FEWER))


def run_environment(spec: RunSpec) -> dict[str, str]:
    """Return the environment of a run's process: its allocator, and how its threads wait.

    Threads that spin for long slow down up to a hundred times when another program needs a core, and threads
    that sleep at once lose a third of their speed; hence a limited spin count. :func:`kept_shapes` sets the
    size of oneDNN's cache.
    """
    waiting = {"GOMP_SPINCOUNT": _SPINS, "ONEDNN_PRIMITIVE_CACHE_CAPACITY": str(kept_shapes(spec))}
    threads = {"OMP_NUM_THREADS": str(spec.threads)} if spec.threads else {}
    return {
        **mps_environment(spec.device),
        **os.environ,
        **heap_environment(spec.memory_limit is not None),
        **waiting,
        **threads,
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
        "PYTHONSAFEPATH": "1",  # `python -m` would import a types.py of the user's folder
    }


def kept_shapes(spec: RunSpec) -> int:
    """Return the number of shapes for which oneDNN caches the compiled product.

    Each takes half a megabyte, and oneDNN's default is 1,024. A BERT model has some twenty shapes per width,
    and 16-bit batches are padded to few widths. Batches that a memory limit splits have every width, and the
    limit leaves no memory for a large cache.
    """
    return _FEWER if spec.memory_limit is not None or not spec.fused else _SHAPES


def mps_environment(device: str) -> dict[str, str]:
    """Return the environment variables that a computation on ``device`` needs before torch is imported.

    On Apple silicon, operations that MPS lacks run on the CPU with a notice instead of failing. A variable
    that the user has set takes precedence.
    """
    return {"PYTORCH_ENABLE_MPS_FALLBACK": "1"} if is_apple() and device in {"auto", "mps"} else {}


def is_apple() -> bool:
    """Return whether this machine is Apple silicon."""
    return platform.system() == "Darwin" and platform.machine() == "arm64"
