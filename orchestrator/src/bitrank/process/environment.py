"""The environment that a run's process is started with, whoever starts it."""

from __future__ import annotations

import os
import platform

from bitrank.process.tcmalloc import heap_environment
from bitrank.spec.run_spec import RunSpec

_SPINS = "20000"
_SHAPES, _FEWER = 256, 128


def set_own_environment() -> None:
    """What a command that computes itself (``plan``, ``study``, ``merge``) needs before torch is imported: how threads wait, and fewer kept
    shapes than a run, as their batches have many widths and are met a few times only. What the user has set stays."""
    os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(_FEWER))


def run_environment(spec: RunSpec) -> dict[str, str]:
    """The run's environment: who keeps its memory, and how its threads wait.

    Threads that wait actively for long crawl as soon as another program wants a core (a hundred times slower was seen), and threads
    that sleep at once lose a third of their speed. What oneDNN keeps is :func:`kept_shapes`.
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
    }


def kept_shapes(spec: RunSpec) -> int:
    """Of how many shapes oneDNN keeps the compiled product: half a megabyte each, and 1,024 unless told otherwise.

    A model of BERT's kind meets some twenty shapes a width, and 16-bit batches are padded to few widths. Batches that a memory limit cuts
    have every width, and no memory to spare for it.
    """
    return _FEWER if spec.memory_limit is not None or not spec.fused else _SHAPES


def mps_environment(device: str) -> dict[str, str]:
    """What a run on ``device`` needs in its environment before torch is imported: on Apple silicon, operations that MPS lacks run on the
    CPU, with a notice, instead of failing. What the user has set stays."""
    return {"PYTORCH_ENABLE_MPS_FALLBACK": "1"} if is_apple() and device in {"auto", "mps"} else {}


def is_apple() -> bool:
    """Whether this is Apple silicon."""
    return platform.system() == "Darwin" and platform.machine() == "arm64"
