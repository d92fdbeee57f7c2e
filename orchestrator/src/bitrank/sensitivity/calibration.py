"""The model and the batches that sensitivities are measured on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from bitrank_data import Batch, TokenisedTask, evaluation_batches
from bitrank_quant import WeightMatrix, apply_precision, float_format, weight_matrices
from bitrank_quant.sensitivity import Forward
from bitrank_trainer import keep_memory, pin_threads, release_memory
from torch import nn

from bitrank.errors import UserError
from bitrank.models.load import open_model
from bitrank.models.tokens import tokenised
from bitrank.process.compute import Compute
from bitrank.sensitivity.fit_head import fit_head, logits_and_labels
from bitrank.spec.run_spec import RunSpec

SEQUENCES = {"classification": 256, "language-modelling": 8}  # for the moments
_TRIED = {
    "classification": 64,
    "language-modelling": 1,
}  # of these, for what each matrix and format adds: a pass for every one
_JOINT = {
    "classification": 64,
    "language-modelling": 2,
}  # of these, for what a whole plan adds: few passes, and every error counts in each
_BATCH_TOKENS = {"classification": 1024, "language-modelling": 512}
_GRAPH_TOKENS = {
    "classification": 512,
    "language-modelling": 128,
}  # of a batch whose graph is kept: a graph grows with it, tables do not
_HEAD_SEQUENCES = 1024


def calibration_batches(
    task: TokenisedTask, count: int, offset: int = 0, tokens: int | None = None, of: int | None = None
) -> list[Batch]:
    """``count`` training sequences after the first ``offset`` of a fixed shuffle, in batches of similar length, ``tokens`` in each or as
    many as a pass without a graph carries well. With ``of`` they are the longest among so many: one alone must not be a text's last words.
    """
    train = task.splits["train"]
    chosen = np.random.default_rng(0).permutation(len(train))[offset : offset + (of or count)]
    chosen = chosen[np.argsort(-train.lengths_N[chosen], kind="stable")][:count] if of else chosen
    return list(
        evaluation_batches(
            train.select(np.sort(chosen)), task.kind, task.pad_id, tokens or _BATCH_TOKENS[task.kind]
        )
    )


@contextmanager
def whole_machine() -> Iterator[None]:
    """One thread a core, whatever the run's own number: tables are shared by runs, so they must not depend on the run that asked first.
    And freed memory is kept from pass to pass."""
    before = torch.get_num_threads()
    pin_threads()
    keep_memory()
    try:
        yield
    finally:
        torch.set_num_threads(before)
        release_memory()


@dataclass(frozen=True)
class Calibration:
    """A model ready to be measured, and what to measure it on: ``many`` sequences in small batches for moments, ``few`` for what a change
    of one matrix adds, ``joint`` for what a whole plan does. ``matrices`` are those that a file had weights for; the others are fitted."""

    model: nn.Module
    forward: Forward
    matrices: list[WeightMatrix]
    many: list[Batch]
    few: list[Batch]
    joint: list[Batch]


def calibration(spec: RunSpec) -> Calibration:
    """The whole model of ``spec``, frozen, and calibration data of its task. Its matrices are held in 16 bits where their file does,
    whatever is computed in. Raises as :func:`measure` does."""
    task = calibration_task(spec)
    compute = Compute.of(spec)
    device, dtype = compute.device, compute.dtype
    loaded = open_model(spec, task.classes, device, dtype)
    matrices = [m for m in weight_matrices(loaded.model) if m.name not in loaded.trained_modules]
    bits = {m.name: _storage_format(loaded.filed(m.name), dtype) for m in matrices if m.tied_to is None}
    apply_precision(loaded.model, bits, compute_dtype=dtype, device=device, fill=loaded.fill)
    loaded.fill_rest()
    model = loaded.model.eval().requires_grad_(False)
    count = min(SEQUENCES[task.kind], len(task.splits["train"]) // 2)
    if loaded.new_modules:  # a head that the checkpoint brings is measured as it is
        fit_head(
            model,
            loaded.trained_modules,
            spec.kind,
            calibration_batches(task, _HEAD_SEQUENCES, offset=count),
            device,
        )
        release_memory()
    many = calibration_batches(task, count, tokens=_GRAPH_TOKENS[task.kind])
    whole = min(count, _JOINT[task.kind])
    joint = calibration_batches(task, whole)
    few = calibration_batches(task, min(count, _TRIED[task.kind]), of=whole)
    return Calibration(model, logits_and_labels(spec.kind, device), matrices, many, few, joint)


def _storage_format(filed: torch.dtype, computed: torch.dtype) -> str:
    """The format to hold a matrix in: its file's where that has 16 bits, else what is computed in: a run has no more."""
    return str(float_format(filed if filed.itemsize == 2 < computed.itemsize else computed))


def calibration_task(spec: RunSpec) -> TokenisedTask:
    task = tokenised(spec)
    if len(task.splits["train"]) < 2:
        raise UserError(
            f"{spec.task} has {len(task.splits['train'])} training example: measuring needs two or more"
        )
    return task
