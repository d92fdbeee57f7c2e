"""The model and the calibration batches of sensitivity measurements."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from bitrank_data import Batch, TokenisedTask, TokenSplit, evaluation_batches
from bitrank_quant import WeightMatrix, apply_precision, float_format, weight_matrices
from bitrank_quant.sensitivity import Forward
from bitrank_trainer import keep_memory, release_memory, usable_threads
from torch import nn

from bitrank.errors import UserError
from bitrank.models.load import open_model
from bitrank.models.tokens import tokenised
from bitrank.process.compute import Compute
from bitrank.sensitivity.cache_key import measured_spec
from bitrank.sensitivity.fit_head import fit_head, logits_and_labels
from bitrank.spec.run_spec import RunSpec
from bitrank.spec.task_kinds import task_kind

_HEAD_SEQUENCES = 1024


def calibration_batches(
    task: TokenisedTask, count: int, offset: int = 0, tokens: int | None = None
) -> list[Batch]:
    """Return ``count`` training sequences in batches of similar length.

    The sequences come after the first ``offset`` of :func:`calibration_order`. A batch has ``tokens`` tokens,
    by default as many as suit a pass without a graph.
    """
    train = task.splits["train"]
    chosen = calibration_order(train)[offset : offset + count]
    return list(
        evaluation_batches(
            train.select(np.sort(chosen)),
            task.kind,
            task.pad_id,
            tokens or task_kind(task.kind).calibration.batch_tokens,
        )
    )


def calibration_order(train: TokenSplit) -> np.ndarray:
    """Return the indices of ``train`` in a fixed shuffle that takes one window of each document before a
    second one of any.
    """
    shuffled = np.random.default_rng(0).permutation(len(train))
    seen: Counter[str] = Counter()
    rounds = []
    for index in shuffled:
        rounds.append(seen[train.ids[index]])
        seen[train.ids[index]] += 1
    return shuffled[np.argsort(rounds, kind="stable")]


@contextmanager
def one_thread_per_operation(device: str) -> Iterator[int]:
    """Compute every operation on one thread, and retain freed memory between passes.

    Yields the number of operations that may run side by side: on a CPU the threads that this process may use,
    which are those of its spec in the process of a run; one on another ``device``, because an accelerator
    computes them in turn, and MPS aborts a process whose threads share it (pytorch issue 197805). Runs with
    different numbers of threads share the tables, so a measured number must not depend on the number of the
    run that measures first. The threads of one operation also wait for each other, many thousand times in a
    measurement, and wait for long whenever another run has their core.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    keep_memory()
    try:
        yield usable_threads() if device == "cpu" else 1
    finally:
        torch.set_num_threads(threads)
        release_memory()


@dataclass(frozen=True)
class Calibration:
    """A model that is ready for measurements, and its calibration data.

    ``many`` sequences in small batches are for moments and costs, ``joint``, some of them, for the divergence
    of each kind of matrix in a plan. ``held_out`` are others, in small batches, for comparing plans.
    ``matrices`` are those whose weights come from a file; the other ones are fitted.
    """

    model: nn.Module
    forward: Forward
    matrices: list[WeightMatrix]
    many: list[Batch]
    joint: list[Batch]
    held_out: list[Batch]


@dataclass(frozen=True)
class MeasuredModel:
    """A frozen model in evaluation mode, its matrices with weights from a file, and its trained heads.

    ``new_heads``: whether a head has no weights in the file.
    """

    model: nn.Module
    matrices: list[WeightMatrix]
    heads: list[str]
    new_heads: bool


def measured_model(spec: RunSpec, task: TokenisedTask) -> MeasuredModel:
    """The whole model of ``spec`` for ``task``.

    A matrix that its file stores in 16 bits is stored in 16 bits here, whatever the compute dtype. New heads
    do not depend on the spec's seed.
    """
    spec = measured_spec(spec)
    compute = Compute.of(spec)
    device, dtype = compute.device, compute.dtype
    loaded = open_model(spec, task.classes, device, dtype)
    matrices = [m for m in weight_matrices(loaded.model) if m.name not in loaded.trained_modules]
    bits = {m.name: _storage_format(loaded.filed(m.name), dtype) for m in matrices if m.tied_to is None}
    apply_precision(loaded.model, bits, compute_dtype=dtype, device=device, fill=loaded.fill)
    loaded.fill_rest()
    model = loaded.model.eval().requires_grad_(False)
    return MeasuredModel(model, matrices, list(loaded.trained_modules), bool(loaded.new_modules))


def calibration(spec: RunSpec) -> Calibration:
    """Return the whole model of ``spec``, frozen, and calibration data of its task.

    Raises as :func:`measure` does.
    """
    task = calibration_task(spec)
    device = Compute.of(spec).device
    opened = measured_model(spec, task)
    model, matrices = opened.model, opened.matrices
    sizes = task_kind(task.kind).calibration
    sequences = len(task.splits["train"])
    count = min(sizes.moments, sequences // 2)
    held_out = max(1, min(sizes.held_out, (sequences - count) // 2))
    if opened.new_heads:  # a head from the checkpoint is measured as it is
        measured = count + held_out
        fit_head(
            model,
            opened.heads,
            spec.kind,
            # Sequences that are not measured on. The smallest tasks have no others: there they overlap.
            calibration_batches(task, _HEAD_SEQUENCES, offset=measured if measured < sequences else count),
            device,
        )
        release_memory()
    small = sizes.graph_tokens
    return Calibration(
        model,
        logits_and_labels(spec.kind, device),
        matrices,
        many=calibration_batches(task, count, tokens=small),
        # Half batches, so that two can be computed at the same time.
        joint=calibration_batches(task, min(count, sizes.per_plan), tokens=sizes.batch_tokens // 2),
        held_out=calibration_batches(task, held_out, offset=count, tokens=small),
    )


def _storage_format(filed: torch.dtype, computed: torch.dtype) -> str:
    """Return the format for storing a matrix.

    The format of its file if that has 16 bits, otherwise the compute dtype, which is also the precision of a
    run.
    """
    return str(float_format(filed if filed.itemsize == 2 < computed.itemsize else computed))


def calibration_task(spec: RunSpec) -> TokenisedTask:
    task = tokenised(spec)
    if len(task.splits["train"]) < 2:
        raise UserError(
            f"{spec.task} has {len(task.splits['train'])} training example: measuring needs two or more"
        )
    return task
