"""Several seeds. A seed is a block: within it both arms saw the same draw, so only differences within a seed count.

Two questions, two intervals, never one number. *Over examples*: would these trained models differ on other examples? Each example's
difference is averaged over seeds, and examples are the sample. *Over seeds*: would other seeds differ? Each seed's difference is one
observation of a t interval. With one seed the second question has no answer, and :data:`ONE_SEED` says so.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from bitrank_analysis.errors import AnalysisError
from bitrank_analysis.statistics.intervals import Floats, padded_estimate

ONE_SEED = (
    "One seed was run: the intervals speak of other examples for these trained models, and cannot tell whether another seed would "
    "give the same order."
)


def over_seeds(differences_S: Floats, alpha: float = 0.05) -> tuple[float, float]:
    """Student's interval of the mean of per-seed differences (S,); (NaN, NaN) with one seed."""
    if len(differences_S) < 2:
        return float("nan"), float("nan")
    mean, half = float(differences_S.mean()), float(stats.t.ppf(1 - alpha / 2, len(differences_S) - 1) * stats.sem(differences_S))
    return mean - half, mean + half


def agree(low: pd.Series, high: pd.Series, margin: pd.Series | None = None) -> pd.Series:
    """Whether the intervals over seeds ``low high`` leave out zero, or with ``margin`` lie within ±margin. True with one seed.

    What holds over examples for the mean of a few trained models is no verdict on the arms when another seed could turn it round: one
    collapsed run out of three does that.
    """
    held = (low > 0) | (high < 0) if margin is None else (low > -margin) & (high < margin)
    return held | low.isna()


def sign_flip(differences_N: NDArray[np.int64]) -> float:
    """Exact two-sided p of "each example's difference is as likely to be +d as −d", for whole-numbered differences (N,).

    Given as sums over seeds of (candidate right) − (baseline right). With one seed it is McNemar's exact test; with several it is the
    same idea: the null distribution of the sum, Σ ±|d|, comes from convolving one binomial for each size of d.
    """
    sizes, counts = np.unique(np.abs(differences_N[differences_N != 0]), return_counts=True)
    chances = np.ones(1)
    for size, count in zip(sizes.tolist(), counts.tolist(), strict=True):
        spread = np.zeros(2 * size * count + 1)
        spread[:: 2 * size] = stats.binom.pmf(np.arange(count + 1), count, 0.5)
        chances = np.convolve(chances, spread)
    sums = np.arange(len(chances)) - len(chances) // 2
    return float(min(1.0, chances[np.abs(sums) >= abs(int(differences_N.sum()))].sum()))


def equivalence(differences_N: Floats, margin: float) -> float:
    """p of TOST that the mean of seed-averaged differences (N,) in [−1, 1] lies within ±``margin``; normal, with the padded error."""
    if not 0 < margin < 1:
        raise AnalysisError(f"expected a margin between 0 and 1, got {margin}")
    found = padded_estimate(differences_N)
    return float(max(stats.norm.sf((found.value + margin) / found.error), stats.norm.cdf((found.value - margin) / found.error)))
