"""Metrics: direction, chance level, format, and the paired test of each, in one entry.

A run records its kind of task and its metric as the tags ``kind`` and ``metric``, and the metric's value as
``eval/<key>``. A metric without an entry in :data:`METRICS` has no paired test, so its runs are not compared.
Further metrics of a kind are compared too if the runs' predictions have their columns
(:func:`further_metrics`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from bitrank_analysis import corpus_scores
from bitrank_analysis.corpus_scores import Score
from bitrank_analysis.errors import AnalysisError
from bitrank_analysis.example_values import (
    ExampleValues,
    averaged,
    class_counts,
    listed,
    of_corpus,
    right_or_wrong,
    single,
    summed,
)


@dataclass(frozen=True)
class ChanceLevel:
    """Quality without learning: its ``level`` from the predictions of a run, and ``how`` it is reached.

    The values of a metric with a chance level are 0 or 1 per example: whether ``label`` is ``prediction``.
    """

    level: Callable[[pd.DataFrame], float]
    how: str


@dataclass(frozen=True)
class Metric:
    """One metric.

    ``name`` is the name inside a sentence, and ``kind`` the kind of task of runs that recorded none.
    ``test`` is a key of :data:`~bitrank_analysis.statistics.paired.PAIRED_TESTS`; ``margin`` is its
    equivalence margin, in the unit of a difference of means. If ``is_log``, a mean is the logarithm of the
    metric, and differences are log ratios. A quality is printed as ``factor`` · value with ``decimals`` and
    ``symbol``; a difference in ``change_unit``. ``examples_name`` is the unit of analysis, in plural.
    ``counts_untrained``: quality before training is informative, since no head is new. ``shared_by`` are
    other kinds of tasks that have the metric.
    """

    key: str
    name: str
    kind: str
    higher_is_better: bool
    examples: ExampleValues
    test: str
    margin: float
    change_unit: str
    is_log: bool = False
    factor: float = 1.0
    decimals: int = 2
    symbol: str = ""
    examples_name: str = "examples"
    chance: ChanceLevel | None = None
    counts_untrained: bool = False
    shared_by: tuple[str, ...] = ()

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of tasks that have the metric."""
        return (self.kind, *self.shared_by)

    @property
    def title(self) -> str:
        """The name with a capital letter."""
        return self.name[0].upper() + self.name[1:]

    @property
    def unit(self) -> str:
        """Unit of :meth:`change`: ``points of accuracy``."""
        return f"{self.change_unit} of {self.name}"

    @property
    def axis(self) -> str:
        """Axis label, with the better direction."""
        symbol = f", {self.symbol}" if self.symbol else ""
        return f"{self.title}{symbol} ({'higher' if self.higher_is_better else 'lower'} is better)"

    def text(self, value: float) -> str:
        """``0.833`` as ``83.3 %`` for a share."""
        shown = f"{self.factor * value:.{self.decimals}f}"
        return f"{shown} {self.symbol}" if self.symbol else shown

    def of_mean(self, mean: float) -> float:
        """The metric from a mean over examples."""
        return float(np.exp(mean)) if self.is_log else mean

    def over_runs(self, values: pd.Series) -> float:
        """The mean of the metric over runs: of a perplexity the geometric one, as of its logarithms."""
        return self.of_mean(float((np.log(values) if self.is_log else values).mean()))

    def change(self, difference: float) -> float:
        """A difference of means in reported units: a log ratio in percent, else ``factor`` · difference."""
        return 100 * math.expm1(difference) if self.is_log else self.factor * difference


def _text_share(key: str, name: str, test: str = "shares", symbol: str = "%") -> Metric:
    """A score of a generated text in [0, 1], in column ``key``."""
    return Metric(
        key=key,
        name=name,
        kind=_SEQUENCE_TO_SEQUENCE,
        shared_by=_WRITING,
        higher_is_better=True,
        examples=averaged(key),
        test=test,
        margin=0.01,  # one point
        change_unit="points",
        factor=100.0,
        decimals=1,
        symbol=symbol,
    )


def _text_corpus(key: str, name: str, score: Score) -> Metric:
    """A score of all generated texts, 0 to 100, from the counts in column ``<key>_counts``."""
    column = f"{key}_counts"
    return Metric(
        key=key,
        name=name,
        kind=_SEQUENCE_TO_SEQUENCE,
        shared_by=_WRITING,
        higher_is_better=True,
        examples=of_corpus((column,), listed(column), score),
        test="corpus",
        margin=1.0,
        change_unit="points",
        decimals=1,
    )


def _class_corpus(key: str, name: str, score: Score) -> Metric:
    """A score of all predicted classes, with the greatest value 1."""
    return Metric(
        key=key,
        name=name,
        kind="classification",
        higher_is_better=True,
        examples=of_corpus(("label", "prediction"), class_counts, score),
        test="corpus",
        margin=0.01,
        change_unit="points",
        factor=100.0,
        decimals=1,
    )


def _most_frequent_class(predictions: pd.DataFrame) -> float:
    return float(predictions["label"].value_counts(normalize=True).max())


_SEQUENCE_TO_SEQUENCE = "sequence-to-sequence"
_WRITING = ("instruction-following", "question-answering")  # other kinds whose predictions are texts

METRICS: dict[str, Metric] = {
    metric.key: metric
    for metric in (
        Metric(
            key="acc",
            name="accuracy",
            kind="classification",
            higher_is_better=True,
            examples=right_or_wrong(),
            test="right or wrong",
            margin=0.01,  # one percentage point
            change_unit="points",
            factor=100.0,
            decimals=1,
            symbol="%",
            chance=ChanceLevel(_most_frequent_class, "naming the most frequent class"),
        ),
        Metric(
            key="ppl",
            name="perplexity",
            kind="language-modelling",
            higher_is_better=False,
            examples=summed("loss", "tokens", "numbers of tokens"),
            test="sign flips",
            margin=math.log(1.02),  # two percent, as a log ratio
            change_unit="%",
            is_log=True,
            examples_name="documents",
            counts_untrained=True,
            shared_by=(_SEQUENCE_TO_SEQUENCE,),
        ),
        Metric(
            key="token_acc",
            name="next-token accuracy",
            kind="language-modelling",
            higher_is_better=True,
            # A token of a long document counts as one of a short one, as in perplexity.
            examples=summed("right", "tokens", "numbers of tokens"),
            test="sign flips",
            margin=0.01,  # one point
            change_unit="points",
            factor=100.0,
            decimals=1,
            symbol="%",
            examples_name="documents",
            counts_untrained=True,
            shared_by=(_SEQUENCE_TO_SEQUENCE, "instruction-following"),
        ),
        _class_corpus("macro_f1", "macro-F1", corpus_scores.macro_f1),
        _class_corpus("mcc", "Matthews' correlation", corpus_scores.matthews),
        _text_share("rouge1", "ROUGE-1"),
        _text_share("rouge2", "ROUGE-2"),
        _text_share("rougeL", "ROUGE-L"),
        _text_corpus("bleu", "BLEU", corpus_scores.bleu),
        _text_corpus("chrf", "character F-score (chrF)", corpus_scores.chrf),
        Metric(
            key="completion_ppl",
            name="completion perplexity",
            kind="instruction-following",
            higher_is_better=False,
            examples=summed("loss", "tokens", "numbers of answer tokens"),
            test="sign flips",
            margin=math.log(1.02),  # two percent, as a log ratio
            change_unit="%",
            is_log=True,
            counts_untrained=True,
        ),
        Metric(
            key="token_f1",
            name="F1 of words",
            kind="question-answering",
            higher_is_better=True,
            examples=averaged("token_f1"),
            shared_by=(_SEQUENCE_TO_SEQUENCE, "instruction-following"),
            test="shares",
            margin=0.01,  # one point, as for accuracy
            change_unit="points",
            factor=100.0,
            decimals=1,
            symbol="%",
        ),
        Metric(
            key="exact_match",
            name="exact match",
            kind="question-answering",
            higher_is_better=True,
            examples=averaged("exact_match"),
            shared_by=(_SEQUENCE_TO_SEQUENCE, "instruction-following"),
            test="right or wrong",
            margin=0.01,
            change_unit="points",
            factor=100.0,
            decimals=1,
            symbol="%",
        ),
        Metric(
            key="p_at_1",
            name="precision at 1",
            kind="probing",
            shared_by=("masked-probing",),
            higher_is_better=True,
            examples=right_or_wrong(),
            test="right or wrong",
            margin=0.01,
            change_unit="points",
            factor=100.0,
            decimals=1,
            symbol="%",
            examples_name="facts",
            chance=ChanceLevel(_most_frequent_class, "naming the most frequent object"),
            counts_untrained=True,
        ),
        Metric(
            key="mrr",
            name="mean reciprocal rank",
            kind="probing",
            shared_by=("masked-probing",),
            higher_is_better=True,
            examples=single("reciprocal_rank"),
            test="shares",
            margin=0.01,
            change_unit="points",
            factor=100.0,
            decimals=1,
            symbol="%",
            examples_name="facts",
            counts_untrained=True,
        ),
    )
}


def further_metrics(kind: str, main: str, columns: set[str]) -> list[str]:
    """Keys of the metrics other than ``main`` of tasks of ``kind`` whose ``columns`` predictions have."""
    return [
        key
        for key, metric in METRICS.items()
        if key != main and kind in metric.kinds and set(metric.examples.columns) <= columns
    ]


def metric_of(key: str) -> Metric:
    """Entry ``key`` of :data:`METRICS`. Raises :class:`AnalysisError` with the known keys for another."""
    if key not in METRICS:
        raise AnalysisError(
            f"unknown metric {key!r}: expected one of {', '.join(METRICS)}; add an entry to "
            "bitrank_analysis.metrics.METRICS"
        )
    return METRICS[key]
