"""Which arms no other arm beats on both size and quality, and how sure that is."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bitrank_analysis.errors import AnalysisError
from bitrank_analysis.statistics.arms import arms as arm_table
from bitrank_analysis.statistics.examples import load_arms
from bitrank_analysis.statistics.intervals import Floats
from bitrank_analysis.study import Study

SIZES = ("model_mib", "peak_mib")
RESAMPLES = 4000


def pareto(study: Study, task: str, x: str = "model_mib", seed: int = 0) -> pd.DataFrame:
    """Columns: config, x (MiB, mean over seeds), quality, low, high, on_front, probability; ordered by x.

    ``probability`` is the share of bootstrap resamples of examples (or documents), the same for all arms, in which the arm is on the
    front; x is held as measured. Raises :class:`AnalysisError` for another ``x`` than those in ``SIZES``, and when it was not measured.
    """
    if x not in SIZES:
        raise AnalysisError(f"expected x to be one of {', '.join(SIZES)}, got {x!r}")
    table, loaded = arm_table(study, task), load_arms(study, task)
    if table[x].isna().any():
        raise AnalysisError(f"{x} was not recorded for {', '.join(table.loc[table[x].isna(), 'config'])}; run them again")
    chosen = [loaded[config] for config in table["config"]]
    values_AN = np.stack([arm.values_SN.mean(axis=0) for arm in chosen])
    better = 1.0 if chosen[0].metric == "acc" else -1.0
    x_A, weights_N = table[x].to_numpy(dtype=np.float64), chosen[0].weights_N
    drawn_BA = better * resampled(values_AN, weights_N, RESAMPLES, seed)
    front = table[["config", x, "quality", "low", "high"]].rename(columns={x: "x"})
    front["on_front"] = on_front(x_A, better * (values_AN.sum(axis=1) / weights_N.sum())[None, :])[0]
    front["probability"] = on_front(x_A, drawn_BA).mean(axis=0)
    return front.sort_values(["x", "config"]).reset_index(drop=True)


def on_front(x_A: Floats, quality_BA: Floats) -> NDArray[np.bool_]:
    """For each of B draws, which of A arms (B, A) no other dominates: smaller x is better, larger quality is better.

    One arm dominates another when it is no worse in both and better in one; so equal arms are on the front together.
    """
    smaller_AA = x_A[:, None] < x_A[None, :]
    as_small_AA = x_A[:, None] <= x_A[None, :]
    quality_B1A, quality_BA1 = quality_BA[:, None, :], quality_BA[:, :, None]
    dominates_BAA = as_small_AA & (quality_BA1 >= quality_B1A) & (smaller_AA | (quality_BA1 > quality_B1A))
    return np.asarray(~dominates_BAA.any(axis=1), dtype=np.bool_)


def resampled(values_AN: Floats, weights_N: Floats, resamples: int, seed: int) -> Floats:
    """Σ value / Σ weight of every arm (B, A) over B bootstrap resamples of the examples, each the same for all arms."""
    n, generator, chunks = len(weights_N), np.random.default_rng(seed), []
    for start in range(0, resamples, 500):
        counts_BN = generator.multinomial(n, np.full(n, 1 / n), size=min(500, resamples - start)).astype(np.float64)
        chunks.append((counts_BN @ values_AN.T) / (counts_BN @ weights_N)[:, None])
    return np.concatenate(chunks)
