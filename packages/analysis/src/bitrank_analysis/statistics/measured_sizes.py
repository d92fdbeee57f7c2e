"""Sizes that are measured, such as peak memory, and so vary between runs of one config.

Two peaks of 1,295 and 1,300 MiB are one peak when a repeat moves by 20 MiB. The spread between runs is relative (a share of the size),
taken from the seeds of all arms together, and from :data:`PRIOR` where there are few of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import numpy as np
import pandas as pd

from bitrank_analysis.statistics.intervals import Floats

# Repeats of one config, relative: (1,003, 1,045) MiB with glibc's heap, 803 to 808 in five runs with tcmalloc. See EXPERIMENTS.md.
PRIOR = {"peak_mib": 0.02}
_PRIOR_DF = 4.0


@dataclass(frozen=True)
class SizeSpread:
    """``share`` is the standard deviation of one run's size, relative; ``df`` what it was estimated with, the prior counted in."""

    share: float
    df: float

    def draws(self, size_A: Floats, runs_A: Floats, count: int, generator: np.random.Generator) -> Floats:
        """Sizes (B, A) that means over ``runs_A`` runs, seen as ``size_A``, could stand for."""
        scale_B1 = self.share * np.sqrt(self.df / generator.chisquare(self.df, size=(count, 1)))
        steps_BA = generator.standard_normal((count, len(size_A)))
        return np.asarray(size_A * np.exp(scale_B1 * steps_BA / np.sqrt(runs_A)))


def size_spread(runs: pd.DataFrame, column: str) -> SizeSpread | None:
    """The spread of ``column`` between runs of one config; None for a size that does not vary (stored bytes follow from the plan)."""
    if column not in PRIOR:
        return None
    known = runs.dropna(subset=[column])
    logs = np.log(known[column])
    apart = logs - logs.groupby(known["config"]).transform("mean")
    own_df = float(len(known) - known["config"].nunique())
    df = own_df + _PRIOR_DF
    share = sqrt((float((apart**2).sum()) + _PRIOR_DF * PRIOR[column] ** 2) / df)
    return SizeSpread(share, df)
