"""Spread of measured sizes, such as peak memory, between runs of one config.

Peaks of 1,295 and 1,300 MiB are equal if repeated runs differ by 20 MiB. The spread is relative to the size.
It is estimated from the seeds of all arms together, and from :data:`PRIOR` where few seeds exist.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import numpy as np
import pandas as pd

from bitrank_analysis.statistics.intervals import Floats

# Relative spread of repeated runs of one config: 1,003 and 1,045 MiB with glibc's malloc, 803 to 808 MiB in
# five runs with tcmalloc (docs/lab-notebook/2026-11-26.md).
PRIOR = {"peak_mib": 0.02}
_PRIOR_DF = 4.0


@dataclass(frozen=True)
class SizeSpread:
    """Relative standard deviation ``share`` of the size of one run.

    ``df`` are the degrees of freedom of the estimate, the prior's included.
    """

    share: float
    df: float

    def draws(self, size_A: Floats, runs_A: Floats, count: int, generator: np.random.Generator) -> Floats:
        """Random sizes (B, A) around the means ``size_A`` over ``runs_A`` runs."""
        scale_B1 = self.share * np.sqrt(self.df / generator.chisquare(self.df, size=(count, 1)))
        steps_BA = generator.standard_normal((count, len(size_A)))
        return np.asarray(size_A * np.exp(scale_B1 * steps_BA / np.sqrt(runs_A)))


def size_spread(runs: pd.DataFrame, column: str) -> SizeSpread | None:
    """Spread of ``column`` between runs of one config; None for a size that does not vary.

    Stored bytes do not vary: they follow from the plan.
    """
    if column not in PRIOR:
        return None
    known = runs.dropna(subset=[column])
    logs = np.log(known[column])
    apart = logs - logs.groupby(known["config"]).transform("mean")
    own_df = float(len(known) - known["config"].nunique())
    df = own_df + _PRIOR_DF
    share = sqrt((float((apart**2).sum()) + _PRIOR_DF * PRIOR[column] ** 2) / df)
    return SizeSpread(share, df)
