"""Metrics: direction, chance level, format, and the paired test of each, in one entry.

A run records its kind of task and its metric as the tags ``kind`` and ``metric``, and the metric's value as
``eval/<key>``. A metric without an entry in :data:`METRICS` has no paired test, so its runs are not compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from bitrank_analysis.errors import AnalysisError


@dataclass(frozen=True)
class ExampleValues:
    """Per-example values from the rows of ``predictions.parquet``; Σ value / Σ weight is the mean of an arm.

    ``read`` takes the rows and the run's name for errors, and returns a frame by example id, sorted, with the
    columns ``value``, ``weight`` and ``key``. The key must be equal in all runs of a task; ``key_name`` is
    its name in errors. ``columns`` are those that the rows must have.
    """

    columns: tuple[str, ...]
    read: Callable[[pd.DataFrame, str], pd.DataFrame]
    key_name: str


@dataclass(frozen=True)
class ChanceLevel:
    """Quality without learning: its ``level`` from the predictions of a run, and ``how`` it is reached.

    The values of a metric with a chance level are 0 or 1 per example.
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
    ``counts_untrained``: quality before training is informative, since no head is new.
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

    def change(self, difference: float) -> float:
        """A difference of means in reported units: a log ratio in percent, else ``factor`` · difference."""
        return 100 * math.expm1(difference) if self.is_log else self.factor * difference


def right_or_wrong(label: str = "label", prediction: str = "prediction") -> ExampleValues:
    """1 for an example whose prediction is its label, 0 for another; one row per example."""

    def read(predictions: pd.DataFrame, name: str) -> pd.DataFrame:
        rows = _by_id(predictions, name)
        right = (rows[label] == rows[prediction]).astype(float)
        return pd.DataFrame({"value": right, "weight": 1.0, "key": rows[label]})

    return ExampleValues(("id", label, prediction), read, "labels")


def single(value: str) -> ExampleValues:
    """Column ``value`` of an example, of weight 1; one row per example."""

    def read(predictions: pd.DataFrame, name: str) -> pd.DataFrame:
        rows = _by_id(predictions, name)
        return pd.DataFrame({"value": rows[value].astype(float), "weight": 1.0, "key": 1.0})

    return ExampleValues(("id", value), read, "weights")


def summed(value: str, weight: str, weight_name: str) -> ExampleValues:
    """Sums of the columns ``value`` and ``weight`` over the rows of a document."""

    def read(predictions: pd.DataFrame, name: str) -> pd.DataFrame:
        sums = predictions.groupby("id", sort=True)[[value, weight]].sum(min_count=1)
        frame = sums.rename(columns={value: "value", weight: "weight"})
        frame["key"] = frame["weight"]
        return frame

    return ExampleValues(("id", value, weight), read, weight_name)


def _by_id(predictions: pd.DataFrame, name: str) -> pd.DataFrame:
    twice = predictions["id"].duplicated()
    if twice.any():
        raise AnalysisError(
            f"the predictions of {name} hold {twice.sum()} ids twice; expected one row an example"
        )
    return predictions.set_index("id").sort_index()


def _most_frequent_class(predictions: pd.DataFrame) -> float:
    return float(predictions["label"].value_counts(normalize=True).max())


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
        ),
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
            examples=single("token_f1"),
            test="shares",
            margin=0.01,  # one point, as for accuracy
            change_unit="points",
            factor=100.0,
            decimals=1,
            symbol="%",
            examples_name="questions",
        ),
        Metric(
            key="exact_match",
            name="exact match",
            kind="question-answering",
            higher_is_better=True,
            examples=single("exact_match"),
            test="right or wrong",
            margin=0.01,
            change_unit="points",
            factor=100.0,
            decimals=1,
            symbol="%",
            examples_name="questions",
        ),
        Metric(
            key="p_at_1",
            name="precision at 1",
            kind="probing",
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


def metric_of(key: str) -> Metric:
    """Entry ``key`` of :data:`METRICS`. Raises :class:`AnalysisError` with the known keys for another."""
    if key not in METRICS:
        raise AnalysisError(
            f"unknown metric {key!r}: expected one of {', '.join(METRICS)}; add an entry to "
            "bitrank_analysis.metrics.METRICS"
        )
    return METRICS[key]
