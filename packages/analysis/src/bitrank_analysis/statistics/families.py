"""Holm's correction over a family of comparisons."""

from __future__ import annotations

import numpy as np

from bitrank_analysis.statistics.intervals import Floats


def holm(p_K: Floats) -> Floats:
    """Adjusted p-values (K,) of a family by Holm (1979), *Scand. J. Statist.* 6, 65–70.

    A NaN is not part of the family and stays NaN.
    """
    adjusted_K = np.full(len(p_K), np.nan)
    tested = np.flatnonzero(~np.isnan(p_K))
    order = tested[np.argsort(p_K[tested], kind="stable")]
    steps = p_K[order] * np.arange(len(order), 0, -1)
    adjusted_K[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted_K
