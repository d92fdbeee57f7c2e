"""Pareto front of size and quality, with the probability that each arm is on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bitrank_analysis.errors import AnalysisError
from bitrank_analysis.metrics import metric_of
from bitrank_analysis.statistics.arms import arms as arm_table
from bitrank_analysis.statistics.examples import ArmResults, load_arms
from bitrank_analysis.statistics.intervals import Floats
from bitrank_analysis.statistics.measured_sizes import size_spread
from bitrank_analysis.statistics.moderation import seed_spread
from bitrank_analysis.study import Study

SIZES = ("stored_mib", "peak_mib")  # model and adapters as files; peak of the training process
RESAMPLES = 4000
SURE = 0.95
ON, OFF, OPEN = "yes", "no", "unresolved"


def pareto(study: Study, task: str, x: str = "stored_mib", seed: int = 0) -> pd.DataFrame:
    """Return the Pareto front of size ``x`` and quality, one row per config ordered by x.

    Columns: config, x (MiB, mean over seeds), x_low, x_high, quality, low, high, on_front, probability,
    membership.

    ``on_front`` is the front of the measured means. ``probability`` is the share of resamples in which the
    arm is on the front. A resample draws the examples (or documents), the same for all arms; with several
    seeds also the effect of seeds on each arm; and a size that varies between runs
    (:mod:`~bitrank_analysis.statistics.measured_sizes`), whose 95 % range is ``x_low`` to ``x_high``.
    ``membership`` is yes for a probability from 0.95, no up to 0.05, else unresolved. ``attrs["size_share"]``
    is the relative spread of x between runs, 0 if it does not vary.

    Raises :class:`AnalysisError` for an ``x`` that is not in ``SIZES`` or was not measured.
    """
    if x not in SIZES:
        raise AnalysisError(f"expected x to be one of {', '.join(SIZES)}, got {x!r}")
    table, loaded = arm_table(study, task), load_arms(study, task)
    if table[x].isna().any():
        raise AnalysisError(
            f"{x} was not recorded for {', '.join(table.loc[table[x].isna(), 'config'])}; run them again"
        )
    chosen = [loaded[config] for config in table["config"]]
    better = 1.0 if metric_of(chosen[0].metric).higher_is_better else -1.0
    x_A = table[x].to_numpy(dtype=np.float64)
    spread = size_spread(study.runs[study.runs["task"] == task], x)
    generator = np.random.default_rng(seed)
    runs_A = table["seeds"].to_numpy(dtype=np.float64)
    x_BA = (
        spread.draws(x_A, runs_A, RESAMPLES, generator)
        if spread
        else np.broadcast_to(x_A, (RESAMPLES, len(x_A)))
    )
    front = table[["config", x, "quality", "low", "high"]].rename(columns={x: "x"})
    front.insert(2, "x_low", np.quantile(x_BA, 0.025, axis=0))
    front.insert(3, "x_high", np.quantile(x_BA, 0.975, axis=0))
    measured_A = np.array([arm.values_SN.mean(axis=0).sum() / arm.weights_N.sum() for arm in chosen])
    front["on_front"] = on_front(x_A, better * measured_A[None, :])[0]
    front["probability"] = on_front(x_BA, better * _qualities(chosen, loaded, seed)).mean(axis=0)
    front["membership"] = pd.Series([_membership(share) for share in front["probability"]], dtype=object)
    front = front.sort_values(["x", "config"]).reset_index(drop=True)
    front.attrs["size_share"] = spread.share if spread else 0.0
    return front


def _membership(probability: float) -> str:
    if probability >= SURE:
        return ON
    return OFF if probability <= 1 - SURE else OPEN


def _qualities(chosen: Sequence[ArmResults], loaded: Mapping[str, ArmResults], seed: int) -> Floats:
    """Resampled accuracy or log-perplexity of each arm (B, A).

    A resample draws examples, and seeds if several were run.
    """
    values_AN = np.stack([arm.values_SN.mean(axis=0) for arm in chosen])
    drawn_BA = resampled(values_AN, chosen[0].weights_N, RESAMPLES, seed)
    spread = seed_spread(loaded.values())
    generator = np.random.default_rng([seed, 1])
    for column, arm in enumerate(chosen):
        if spread and len(arm.seeds) > 1:
            over = spread.error(arm.values_SN.sum(axis=1) / arm.weights_N.sum(), size=1.0)
            drawn_BA[:, column] += over.error * generator.standard_t(over.df, size=RESAMPLES)
    return drawn_BA


def on_front(x_A: Floats, quality_BA: Floats) -> NDArray[np.bool_]:
    """For each of B draws, whether no other arm dominates the arm (B, A).

    Smaller x, (A,) or (B, A), and larger quality are better. One arm dominates another if it is no worse in
    both and better in one, so equal arms are on the front together.
    """
    x_BA = np.broadcast_to(x_A, quality_BA.shape)
    x_B1A, x_BA1 = x_BA[:, None, :], x_BA[:, :, None]
    quality_B1A, quality_BA1 = quality_BA[:, None, :], quality_BA[:, :, None]
    no_worse_BAA = (x_BA1 <= x_B1A) & (quality_BA1 >= quality_B1A)
    better_BAA = (x_BA1 < x_B1A) | (quality_BA1 > quality_B1A)
    return np.asarray(~(no_worse_BAA & better_BAA).any(axis=1), dtype=np.bool_)


def resampled(values_AN: Floats, weights_N: Floats, resamples: int, seed: int) -> Floats:
    """Σ value / Σ weight of every arm (B, A) over B bootstrap resamples of the examples.

    All arms share each resample.
    """
    n, generator, chunks = len(weights_N), np.random.default_rng(seed), []
    for start in range(0, resamples, 500):
        counts_BN = generator.multinomial(n, np.full(n, 1 / n), size=min(500, resamples - start)).astype(
            np.float64
        )
        chunks.append((counts_BN @ values_AN.T) / (counts_BN @ weights_N)[:, None])
    return np.concatenate(chunks)
