"""What a run learns from and is judged on: a tokenised task, cut to the profile's sizes, as batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from bitrank_data import (
    Batch,
    DataReport,
    TokenisedTask,
    TokenSplit,
    evaluation_batches,
    spread_windows,
    training_batches,
)
from bitrank_trainer import choose_device, width_multiple

from bitrank.models.tokens import tokenised
from bitrank.process.compute import Compute
from bitrank.run.train_settings import step_parts, step_sequences
from bitrank.spec.run_spec import RunSpec

_EVALUATION_TOKENS = 1024  # padded tokens in one evaluation batch, if every tensor of it is small enough


@dataclass(frozen=True)
class RunData:
    """``test`` and ``validation`` are the splits to judge on; of long documents only some windows when the
    profile says so. Batches are padded to a ``multiple`` of tokens. ``batch_size`` sequences make an
    optimizer step, and come in ``parts``."""

    task: TokenisedTask
    validation: TokenSplit
    test: TokenSplit
    batch_size: int
    seed: int
    evaluation_tokens: int = _EVALUATION_TOKENS
    multiple: int = 1
    parts: int = 1
    report: DataReport = field(default_factory=DataReport)

    def train_batches(self, skip: int) -> Iterator[Batch]:
        """Endless parts of training batches after the first ``skip``; the same for every config of a seed."""
        train, task = self.task.splits["train"], self.task
        return training_batches(
            train, task.kind, task.pad_id, self.batch_size, self.seed, skip, self.multiple, self.parts
        )  # fmt: skip

    def batches_of(self, split: TokenSplit) -> Iterator[Batch]:
        """Every sequence of ``split`` once."""
        return evaluation_batches(
            split, self.task.kind, self.task.pad_id, self.evaluation_tokens, self.multiple
        )


def load_data(spec: RunSpec) -> RunData:
    """The task of ``spec``, tokenised for its model (from the cache when it is there).

    Raises as :func:`~bitrank.models.tokens.tokenised` does.
    """
    task = tokenised(spec)
    validation, test = (
        _capped(task, "validation", spec.validation_windows),
        _capped(task, "test", spec.test_windows),
    )
    parts = step_parts(spec, choose_device(spec.device))
    multiple, report = _multiple(spec), _report(spec, task, test)
    sequences = step_sequences(spec)
    return RunData(
        task, validation, test, sequences, spec.seed, multiple=multiple, parts=parts, report=report
    )


def _report(spec: RunSpec, task: TokenisedTask, test: TokenSplit) -> DataReport:
    """What was left out of the task, and which share of the test split's predicted tokens is judged."""
    if task.kind == "classification":
        return task.report
    judged, whole = _targets(test), _targets(task.splits["test"])
    shares = DataReport({"test_tokens": whole, "test_tokens_judged": judged})
    if judged < whole:
        share = f"{judged:,} of {whole:,} tokens of the test split ({judged / whole:.1%}) are judged"
        windows = f"at most {spec.test_windows} windows of {spec.max_length} tokens of each document"
        shares += DataReport(notes=(f"{share}: {windows}",))
    return task.report + shares


def _targets(split: TokenSplit) -> int:
    """Predicted tokens: all of each sequence but the first."""
    return int((split.lengths_N - 1).sum())


def _multiple(spec: RunSpec) -> int:
    if not spec.fused:
        return 1
    compute = Compute.of(spec)
    return width_multiple(compute.device, compute.dtype)


def _capped(task: TokenisedTask, split: str, windows: int | None) -> TokenSplit:
    part = task.splits[split]
    return part if windows is None or task.kind == "classification" else spread_windows(part, windows)
