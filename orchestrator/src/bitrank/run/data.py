"""Training and evaluation data of a run: a tokenised task, reduced to the spec's sizes, as batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial

from bitrank_data import (
    Batch,
    Batching,
    DataReport,
    TokenisedTask,
    TokenSplit,
    data_kind,
    evaluation_batches,
    spread_windows,
    training_batches,
)
from bitrank_trainer import (
    ALONE,
    Evaluation,
    Objective,
    Processes,
    choose_device,
    evaluate,
    width_multiple,
)
from torch import nn

from bitrank.models.tokens import tokenised
from bitrank.process.compute import Compute
from bitrank.run.train_settings import step_parts, step_sequences
from bitrank.spec.run_spec import RunSpec

_EVALUATION_TOKENS = 1024  # padded tokens of one evaluation batch, unless a tensor limit reduces it


@dataclass(frozen=True)
class RunData:
    """Splits and batch sizes of one run.

    ``test`` and ``validation`` contain at most ``test_windows`` and ``validation_windows`` of each document.
    Batches are padded to a ``multiple`` of tokens. One optimizer step takes ``batch_size`` sequences in
    ``parts`` batches.
    """

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
        """Yield training batches without end, after the first ``skip``; equal for all configs of a seed."""
        train, task = self.task.splits["train"], self.task
        batching = Batching(task.pad_id, self.batch_size, self.seed, self.multiple, self.parts)
        return training_batches(train, task.kind, batching, skip)

    def batches_of(self, split: TokenSplit) -> Iterator[Batch]:
        """Yield every sequence of ``split`` once."""
        return evaluation_batches(
            split, self.task.kind, self.task.pad_id, self.evaluation_tokens, self.multiple
        )

    def evaluate(
        self,
        model: nn.Module,
        split: TokenSplit,
        objective: Objective,
        device: str,
        processes: Processes = ALONE,
    ) -> Evaluation:
        """Evaluate ``model`` on every sequence of ``split``; one row per example if the kind merges rows."""
        merge = data_kind(self.task.kind).merge
        merge_rows = None if merge is None else partial(merge, split)
        return evaluate(model, self.batches_of(split), objective, device, processes, merge_rows)


def load_data(spec: RunSpec) -> RunData:
    """Load the task of ``spec``, tokenised for its model; cached tokens are reused.

    Raises the same errors as :func:`~bitrank.models.tokens.tokenised`.
    """
    task = tokenised(spec)
    validation = _capped(task, "validation", spec.validation_windows)
    test = _capped(task, "test", spec.test_windows)
    parts = step_parts(spec, choose_device(spec.device))
    multiple, report = _multiple(spec), _report(spec, task, test)
    sequences = step_sequences(spec)
    return RunData(
        task, validation, test, sequences, spec.seed, multiple=multiple, parts=parts, report=report
    )


def _report(spec: RunSpec, task: TokenisedTask, test: TokenSplit) -> DataReport:
    """Counts of excluded data, and the share of the test split's predicted tokens that is evaluated."""
    count = data_kind(task.kind).predicted_tokens
    if count is None:
        return task.report
    evaluated, whole = count(test), count(task.splits["test"])
    shares = DataReport({"test_tokens": whole, "test_tokens_evaluated": evaluated})
    if evaluated < whole:
        share = f"{evaluated:,} of {whole:,} tokens of the test split ({evaluated / whole:.1%}) are evaluated"
        windows = f"at most {spec.test_windows} windows of {spec.max_length} tokens of each document"
        shares += DataReport(notes=(f"{share}: {windows}",))
    return task.report + shares


def _multiple(spec: RunSpec) -> int:
    if not spec.fused:
        return 1
    compute = Compute.of(spec)
    return width_multiple(compute.device, compute.dtype)


def _capped(task: TokenisedTask, split: str, windows: int | None) -> TokenSplit:
    part = task.splits[split]
    has_windows = data_kind(task.kind).predicted_tokens is not None
    return spread_windows(part, windows) if has_windows and windows is not None else part
