"""Metrics of a whole test set as functions of sums of counts over its examples.

The sums determine the metric, so any resample or exchange of examples is scored from sums alone, thousands at
a time: every function maps sums (…, K) to scores (…,). Counts of examples are sparse: a class score has three
sums per class, of which an example changes at most three, and thousands of classes must not make memory grow
with the product of examples and classes. Dense sums are computed in parts (:func:`rows_at_once`). BLEU and
chrF equal sacrebleu's with default settings; the counts are those that it sums itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

Floats = NDArray[np.float64]
Score = Callable[[Floats], Floats]

_ORDERS = 4  # longest n-gram of BLEU
_BETA = 2.0  # weight of recall in chrF
_ENTRIES = 2**21  # numbers in one dense array of sums: 16 MiB


@dataclass(frozen=True)
class Counts:
    """Counts of N examples, sparse (N, K); ``names`` are those of the K sums."""

    names: tuple[str, ...]
    values_NK: csr_array

    def over(self, names: Sequence[str]) -> csr_array:
        """Counts (N, K) of the sums ``names``, which include all own ones; 0 for those that are not own."""
        place = {name: number for number, name in enumerate(names)}
        places_K = np.array([place[name] for name in self.names], dtype=np.int64)
        own = self.values_NK.tocoo()
        shape = (self.values_NK.shape[0], len(names))
        return csr_array((own.data, (own.row, places_K[own.col])), shape=shape)


def rows_at_once(width: int) -> int:
    """Number of rows of ``width`` sums each that are made dense at once."""
    return max(1, _ENTRIES // max(width, 1))


def pseudo_values(counts_NK: csr_array, score: Score) -> Floats:
    """Jackknife pseudo-values (N,) of a score: their mean is the score of all examples.

    θ + (N − 1)(mean θ₋ − θ₋ₙ), with θ₋ₙ the score without example n (Efron and Tibshirani, *An Introduction
    to the Bootstrap*, 1993, section 11.5), shifted so that the bias of θ is not subtracted. Their spread
    gives the standard error of θ.
    """
    sums_K = np.asarray(counts_NK.sum(axis=0), dtype=np.float64)
    count, width = counts_NK.shape
    step = rows_at_once(width)
    # By columns, NumPy adds the classes of a row in their order, whatever the number of rows above one.
    parts = (counts_NK[start : start + step].toarray(order="F") for start in range(0, count, step))
    without_N = np.concatenate([score(sums_K - part) for part in parts])
    return np.asarray(score(sums_K) + (count - 1) * (without_N.mean() - without_N), dtype=np.float64)


def macro_f1(sums: Floats) -> Floats:
    """Mean of F1 over the classes that occur; sums (…, 3 C): labels, predictions and matches by class."""
    labels, predictions, right = _by_class(sums)
    occurring = labels + predictions
    scores = np.divide(2 * right, occurring, out=np.zeros_like(right), where=occurring > 0)
    return np.asarray(scores.sum(-1) / np.maximum((occurring > 0).sum(-1), 1), dtype=np.float64)


def matthews(sums: Floats) -> Floats:
    """Matthews' correlation in [−1, 1], 0 if undefined; sums as for :func:`macro_f1`.

    R_K of Gorodkin (2004), "Comparing two K-category assignments by a K-category correlation coefficient",
    *Comput. Biol. Chem.* 28, 367–374.
    """
    labels, predictions, right = _by_class(sums)
    count = labels.sum(-1)
    covariance = right.sum(-1) * count - (labels * predictions).sum(-1)
    spread = (count**2 - (predictions**2).sum(-1)) * (count**2 - (labels**2).sum(-1))
    root = np.sqrt(np.maximum(spread, 0.0))
    return np.divide(covariance, root, out=np.zeros_like(covariance), where=root > 0)


def _by_class(sums: Floats) -> tuple[Floats, Floats, Floats]:
    labels, predictions, right = np.split(np.asarray(sums, dtype=np.float64), 3, axis=-1)
    return labels, predictions, right


def bleu(sums: Floats) -> Floats:
    """BLEU, 0 to 100; sums (…, 10): length, reference length, matching n-grams and n-grams of order 1 to 4.

    Papineni et al. (2002), with sacrebleu's exponential smoothing of orders without a match.
    """
    lengths, references = sums[..., 0], sums[..., 1]
    right, total = sums[..., 2 : 2 + _ORDERS], sums[..., 2 + _ORDERS :]
    # The k-th order without a match counts 1 / 2ᵏ matches.
    smoothed = np.where(right > 0, right, 0.5 ** np.cumsum(right == 0, axis=-1))
    precision = np.divide(smoothed, total, out=np.zeros_like(smoothed), where=total > 0)
    with np.errstate(divide="ignore"):
        mean_log = np.log(precision).mean(-1)
    ratio = np.divide(references, lengths, out=np.full_like(lengths, np.inf), where=lengths > 0)
    score = 100 * np.exp(np.minimum(0.0, 1 - ratio) + mean_log)
    return np.where((right > 0).any(-1), score, 0.0)


def chrf(sums: Floats) -> Floats:
    """chrF, 0 to 100; sums (…, 3 · orders): n-grams of the text, of the reference, and common ones, by order.

    Popović (2015): F-measure of mean precision and mean recall, over the orders that both sides have.
    """
    texts, references, right = (sums[..., place::3] for place in range(3))
    known = (texts > 0) & (references > 0)
    orders = np.maximum(known.sum(-1), 1)
    precision = np.divide(right, texts, out=np.zeros_like(right), where=known).sum(-1) / orders
    recall = np.divide(right, references, out=np.zeros_like(right), where=known).sum(-1) / orders
    weighted = _BETA**2 * precision + recall
    product = 100 * (1 + _BETA**2) * precision * recall
    return np.divide(product, weighted, out=np.zeros_like(product), where=weighted > 0)
