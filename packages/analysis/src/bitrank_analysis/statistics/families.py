"""Several comparisons asked at once: Holm's correction over the family."""

from __future__ import annotations

import numpy as np
from statsmodels.stats.multitest import multipletests

from bitrank_analysis.statistics.intervals import Floats


def holm(p_K: Floats) -> Floats:
    """Adjusted p (K,) of a family by Holm (1979), *Scand. J. Statist.* 6, 65–70. A NaN is no member and stays NaN."""
    adjusted_K = np.full(len(p_K), np.nan)
    asked = ~np.isnan(p_K)
    if asked.any():
        adjusted_K[asked] = multipletests(p_K[asked], method="holm")[1]
    return adjusted_K
