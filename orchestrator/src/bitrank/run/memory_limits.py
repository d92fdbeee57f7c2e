"""Keep a run's process under its memory limit, and its tensors under what the device takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from bitrank_data import write_atomically
from bitrank_quant import Applied
from bitrank_trainer import (
    DTYPES,
    MPS_BYTES,
    Objective,
    Processes,
    Shapes,
    TrainSettings,
    choose_dtype,
    fitting_tokens,
    longest_sequence,
    safe_tokens,
    shapes_of,
    tensor_bytes,
)
from torch import nn

from bitrank.run.data import RunData
from bitrank.run.notices import notice
from bitrank.spec.run_spec import RunSpec

# tensors of one size that a layer's backward pass holds at once: a value made again, its gradient, and what
# lies between
_SIMULTANEOUS = 4


def within_limit(
    settings: TrainSettings,
    spec: RunSpec,
    model: nn.Module,
    objective: Objective,
    data: RunData,
    device: str,
    folder: Path,
    processes: Processes,
) -> TrainSettings:
    """``settings`` with passes small enough for ``spec.memory_limit``; as they are when there is none.

    The limit is each process's own; of several the one with the least room speaks for all. What was chosen is
    kept in ``folder``, so that a resumed run cuts its batches as before and ends with the same numbers.
    """
    if spec.memory_limit is None:
        return settings
    chosen = folder / "micro_tokens.txt"
    if not processes.broadcast(_kept_tokens(chosen) is not None):
        longest = longest_sequence(data.train_batches(0), spec.max_length)
        passing = _passing(model, spec, device)
        tokens = min(
            processes.gather(fitting_tokens(model, objective, longest, device, spec.memory_limit, passing))
        )
        if processes.first:
            write_atomically(chosen, f"{tokens}\n")
        processes.wait()
    kept = _kept_tokens(chosen)
    assert kept is not None
    return replace(settings, micro_tokens=min(kept, settings.micro_tokens or kept))


def _kept_tokens(path: Path) -> int | None:
    """The bound that an earlier attempt wrote; None when it is missing or torn. A whole one ends with a line
    break.
    """
    try:
        text = path.read_text()
        return int(text) if text.endswith("\n") else None
    except (OSError, ValueError):
        return None


def _passing(model: nn.Module, spec: RunSpec, device: str) -> int:
    """Bytes that the backward pass of one of the longest sequences makes and drops: a layer's attention
    scores and widest activation, their gradients, and what of them is made again."""
    shapes = shapes_of(model, spec.fused, _itemsize(spec, device))
    sizes = tensor_bytes(shapes, 1, spec.max_length)
    return _SIMULTANEOUS * (sizes["attention scores"] + sizes["activations"])


def _itemsize(spec: RunSpec, device: str) -> int:
    """Bytes of a number that the run computes with."""
    return DTYPES[choose_dtype(device) if spec.dtype == "auto" else spec.dtype].itemsize


def tensor_safe(
    settings: TrainSettings,
    data: RunData,
    spec: RunSpec,
    model: nn.Module,
    applied: Mapping[str, Applied],
    device: str,
    emit: Callable[[Mapping[str, object]], None],
) -> tuple[TrainSettings, RunData]:
    """Passes and evaluation batches in which no tensor is over 2³² bytes: on MPS always, elsewhere when
    ``spec.mps_safe`` asks.

    Batches, their order and their gradient stay what they were. Raises the trainer's error when one sequence
    is over the bound.
    """
    if not (spec.mps_safe or device == "mps"):
        return settings, data
    shapes = shapes_of(
        model,
        spec.fused,
        _itemsize(spec, device),
        any(done.format == "llm-int8" for done in applied.values()),
    )
    length = int(data.task.splits["train"].lengths_N.max())
    rows = -(-data.batch_size // data.parts)
    tokens = safe_tokens(shapes, rows, length, MPS_BYTES)
    longest_evaluated = int(max(data.validation.lengths_N.max(), data.test.lengths_N.max()))
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
    cut = (
        "whole batches"
        if tokens is None
        else f"passes of {rows} of {batch_size} sequences, same batches and gradient"
    )
    return f"{cut}: the largest tensor takes {size:,} bytes ({kind}, {rows} × {length} tokens), the limit is {MPS_BYTES:,}"
