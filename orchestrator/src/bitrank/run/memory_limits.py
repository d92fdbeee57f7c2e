"""Limit the memory of a run's process, and the size of its tensors, by smaller passes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from bitrank_data import data_kind, write_atomically
from bitrank_quant import Applied
from bitrank_trainer import (
    MPS_BYTES,
    Shapes,
    Task,
    TrainSettings,
    fitting_tokens,
    longest_sequence,
    safe_tokens,
    shapes_of,
    tensor_bytes,
)
from torch import nn

from bitrank.process.compute import Compute
from bitrank.run.data import RunData
from bitrank.run.notices import notice
from bitrank.spec.run_spec import RunSpec

# Tensors of one size that exist at once in a layer's backward pass: a recomputed value, its gradient, and
# intermediates.
_SIMULTANEOUS = 4


def within_limit(
    settings: TrainSettings,
    spec: RunSpec,
    compute: Compute,
    model: nn.Module,
    data: RunData,
    task: Task,
    folder: Path,
) -> TrainSettings:
    """Return ``settings`` with passes small enough for ``spec.memory_limit``; unchanged without a limit.

    ``task`` holds the objective and the processes. The limit applies to each process; the smallest pass of
    all processes is used. The size is stored in ``folder``: a resumed run splits its batches in the same way
    and gives the same numbers.
    """
    if spec.memory_limit is None:
        return settings
    processes, chosen = task.processes, folder / "micro_tokens.txt"
    if not processes.broadcast(_stored_tokens(chosen) is not None):
        longest = longest_sequence(data.train_batches(0), spec.max_length)
        transient = _transient_bytes(model, spec, compute)
        own_tokens = fitting_tokens(
            model, task.objective, longest, compute.device, spec.memory_limit, transient
        )
        tokens = min(processes.gather(own_tokens))
        if processes.first:
            write_atomically(chosen, f"{tokens}\n")
        processes.wait()
    stored = _stored_tokens(chosen)
    assert stored is not None
    return replace(settings, micro_tokens=min(stored, settings.micro_tokens or stored))


def _stored_tokens(path: Path) -> int | None:
    """Read the limit that an earlier attempt wrote; None when it is missing or truncated (no line break)."""
    try:
        text = path.read_text()
        return int(text) if text.endswith("\n") else None
    except (OSError, ValueError):
        return None


def _transient_bytes(model: nn.Module, spec: RunSpec, compute: Compute) -> int:
    """Temporary bytes in the backward pass of one of the longest sequences.

    They are a layer's attention scores and widest activation, their gradients, and recomputed copies.
    """
    shapes = shapes_of(model, spec.fused, compute.dtype.itemsize)
    sizes = tensor_bytes(shapes, 1, spec.max_length)
    return _SIMULTANEOUS * (sizes["attention scores"] + sizes["activations"])


def tensor_safe(
    settings: TrainSettings,
    data: RunData,
    spec: RunSpec,
    compute: Compute,
    model: nn.Module,
    applied: Mapping[str, Applied],
    emit: Callable[[Mapping[str, object]], None],
) -> tuple[TrainSettings, RunData]:
    """Limit passes and evaluation batches so that no tensor exceeds 2³² bytes.

    The limit applies on MPS, and elsewhere if ``spec.mps_safe`` is set. Batches, their order and their
    gradient do not change. Raises the trainer's error when a single sequence exceeds the limit.
    """
    if not (spec.mps_safe or compute.device == "mps"):
        return settings, data
    shapes = shapes_of(
        model,
        spec.fused,
        compute.dtype.itemsize,
        any(done.format == "llm-int8" for done in applied.values()),
    )
    lengths = data_kind(data.task.kind).lengths
    length = int(lengths(data.task.splits["train"]).max())
    rows = -(-data.batch_size // data.parts)
    tokens = safe_tokens(shapes, rows, length, MPS_BYTES)
    longest_evaluated = int(max(lengths(data.validation).max(), lengths(data.test).max()))
    batch_tokens = safe_tokens(
        shapes, -(-data.evaluation_tokens // longest_evaluated), longest_evaluated, MPS_BYTES
    )
    emit(notice("mps_safe", _format_limit(shapes, rows, length, tokens)))
    return replace(settings, micro_tokens=tokens), replace(
        data, evaluation_tokens=batch_tokens or data.evaluation_tokens
    )


def _format_limit(shapes: Shapes, batch_size: int, length: int, tokens: int | None) -> str:
    rows = batch_size if tokens is None else tokens // length
    kind, size = max(tensor_bytes(shapes, rows, length).items(), key=lambda item: item[1])
    passes = f"passes of {rows} of {batch_size} sequences, same batches and gradient"
    split = "whole batches" if tokens is None else passes
    return (
        f"{split}: the largest tensor takes {size:,} bytes ({kind}, {rows} × {length} tokens), "
        f"the limit is {MPS_BYTES:,}"
    )
