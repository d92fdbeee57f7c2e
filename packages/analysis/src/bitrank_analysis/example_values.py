"""Values of examples from the rows of ``predictions.parquet``, for the paired tests of metrics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.sparse import csr_array

from bitrank_analysis import corpus_scores
from bitrank_analysis.corpus_scores import Counts, Score
from bitrank_analysis.errors import AnalysisError

# The counts of each example by id, sorted, from the rows of a run and its name for errors.
CountsOf = Callable[[pd.DataFrame, str], Counts]
_ANSWERS = "numbers of answers"


@dataclass(frozen=True)
class ExampleValues:
    """Per-example values from the rows of ``predictions.parquet``; Σ value / Σ weight is the mean of an arm.

    ``read`` takes the rows and the run's name for errors, and returns a frame by example id, sorted, with the
    columns ``value``, ``weight`` and ``key``. The key must be equal in all runs of a task; ``key_name`` is
    its name in errors. ``columns`` are those that the rows must have.

    A metric of a whole test set has a ``score``: a function of the sums of ``counts`` over examples, which
    are in the order of ``read``. The mean of the values of ``read`` is then the metric.
    """

    columns: tuple[str, ...]
    read: Callable[[pd.DataFrame, str], pd.DataFrame]
    key_name: str
    score: Score | None = None
    counts: CountsOf | None = None


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


def averaged(value: str) -> ExampleValues:
    """Mean of column ``value`` over the rows of an example, of weight 1.

    A dialogue whose chat template drops earlier thoughts has one row per answer. Its answers depend on each
    other, so the dialogue is the example of a paired test.
    """

    def read(predictions: pd.DataFrame, name: str) -> pd.DataFrame:
        groups = predictions.groupby("id", sort=True)[value]
        means = groups.mean().astype(float)
        return pd.DataFrame({"value": means, "weight": 1.0, "key": groups.size().astype(float)})

    return ExampleValues(("id", value), read, _ANSWERS)


def summed(value: str, weight: str, weight_name: str) -> ExampleValues:
    """Sums of the columns ``value`` and ``weight`` over the rows of a document."""

    def read(predictions: pd.DataFrame, name: str) -> pd.DataFrame:
        sums = predictions.groupby("id", sort=True)[[value, weight]].sum(min_count=1)
        frame = sums.rename(columns={value: "value", weight: "weight"})
        frame["key"] = frame["weight"]
        return frame

    return ExampleValues(("id", value, weight), read, weight_name)


def of_corpus(columns: tuple[str, ...], counts: CountsOf, score: Score) -> ExampleValues:
    """A metric of the whole test set: ``score`` of the sums of ``counts`` over examples.

    ``value`` of an example is its jackknife pseudo-value, so the mean over examples is the metric.
    """

    def read(predictions: pd.DataFrame, name: str) -> pd.DataFrame:
        values_N = corpus_scores.pseudo_values(counts(predictions, name).values_NK, score)
        rows = predictions.groupby("id", sort=True).size().astype(float)
        return pd.DataFrame({"value": values_N, "weight": 1.0, "key": rows}, index=rows.index)

    return ExampleValues(("id", *columns), read, _ANSWERS, score, counts)


def class_counts(predictions: pd.DataFrame, name: str) -> Counts:
    """Per class: whether it is the label, whether it is the prediction, and whether it is both."""
    rows = _by_id(predictions, name)
    classes = sorted({*rows["label"], *rows["prediction"]}, key=str)
    place = {number: column for column, number in enumerate(classes)}
    labels_N = rows["label"].map(place).to_numpy(dtype=np.int64)
    predictions_N = rows["prediction"].map(place).to_numpy(dtype=np.int64)
    right_R = np.flatnonzero(labels_N == predictions_N)
    examples = np.concatenate([np.arange(len(rows)), np.arange(len(rows)), right_R])
    width = len(classes)
    sums = np.concatenate([labels_N, width + predictions_N, 2 * width + labels_N[right_R]])
    names = tuple(f"{part} {number}" for part in ("label", "prediction", "right") for number in classes)
    return Counts(names, csr_array((np.ones(len(sums)), (examples, sums)), shape=(len(rows), 3 * width)))


def listed(column: str) -> CountsOf:
    """The counts in a column of lists, in their order, summed over the rows of an example."""

    def counts(predictions: pd.DataFrame, name: str) -> Counts:
        frame = pd.DataFrame(np.stack(predictions[column].to_list()), index=predictions["id"])
        sums_NK = frame.groupby(level=0, sort=True).sum().to_numpy(dtype=np.float64)
        names = tuple(f"{place:03d}" for place in range(sums_NK.shape[1]))
        return Counts(names, csr_array(sums_NK))

    return counts


def _by_id(predictions: pd.DataFrame, name: str) -> pd.DataFrame:
    twice = predictions["id"].duplicated()
    if twice.any():
        raise AnalysisError(
            f"the predictions of {name} hold {twice.sum()} ids twice; expected one row an example"
        )
    return predictions.set_index("id").sort_index()
