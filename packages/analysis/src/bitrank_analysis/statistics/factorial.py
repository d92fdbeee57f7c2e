"""Rank (fixed, adaptive) × precision (16-bit, NF4): main effects and their interaction, each a contrast of four paired values.

Four arms cross fully: B-FP, B-Ada, B-Q4 and Joint-1. Joint-2 and Joint-3 do not join: both are of mixed precision, but they mix it by
different rules (edges high; attention high), so their difference is not one of rank alone.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from bitrank_analysis.statistics.examples import Arm, common_seeds, load_arms
from bitrank_analysis.statistics.families import holm
from bitrank_analysis.statistics.intervals import Estimate, Floats, padded_estimate, t_estimate
from bitrank_analysis.statistics.seeds import agree, over_seeds
from bitrank_analysis.study import Study

CELLS = {("fixed", "16-bit"): "B-FP", ("adaptive", "16-bit"): "B-Ada", ("fixed", "NF4"): "B-Q4", ("adaptive", "NF4"): "Joint-1"}
NAME = "rank {fixed, adaptive} × precision {16-bit, NF4}: " + ", ".join(CELLS.values())
# Weights of B-FP, B-Ada, B-Q4, Joint-1. A main effect is the mean of two differences; the interaction is their difference.
CONTRASTS = {"rank": (-0.5, 0.5, -0.5, 0.5), "precision": (-0.5, -0.5, 0.5, 0.5), "interaction": (1.0, -1.0, -1.0, 1.0)}
_COLUMNS = ["effect", "factorial", "metric", "seeds", "n", "estimate", "low", "high", "seed_low", "seed_high", "p", "p_holm", "resolved"]


def factorial(study: Study, task: str, alpha: float = 0.05) -> pd.DataFrame:
    """Effects of the 2 × 2 on accuracy, or on log-perplexity (nats a token; below zero is better). Columns: effect (rank: adaptive −
    fixed; precision: NF4 − 16-bit; interaction), factorial (which arms), metric, seeds, n, estimate, low, high (over examples or
    documents), seed_low, seed_high (NaN with one seed), p, p_holm (over the three), resolved (p_holm < α and, with several seeds, an
    interval over seeds that leaves out zero).

    Empty when an arm of the four, or a seed common to them, is missing; ``attrs["notes"]`` says which.
    """
    arms = load_arms(study, task)
    lacking = [config for config in CELLS.values() if config not in arms]
    four = [arms[config] for config in CELLS.values() if config in arms]
    seeds = () if lacking else common_seeds(*four)
    if not seeds:
        why = f"it lacks {', '.join(lacking)}" if lacking else "its four arms have no seed in common"
        return _frame([], [f"The factorial {NAME} needs all four arms; {why}."])
    rows = [_effect(effect, four, seeds, alpha) for effect in CONTRASTS]
    return _frame(rows, [f"The factorial is {NAME}. Joint-2 and Joint-3 stay out: their mixed precision follows different rules."], alpha)


def contrast(values_4N: Floats, weights_N: Floats, effect: str, bounded: bool, alpha: float = 0.05) -> Estimate:
    """One effect from four paired values (4, N) in the order of ``CELLS``. ``bounded`` values lie in [0, 1] and get the padded interval."""
    values_N = np.asarray(CONTRASTS[effect], dtype=np.float64) @ values_4N
    span = float(np.abs(CONTRASTS[effect]).sum() / 2)
    return padded_estimate(values_N, alpha, span) if bounded else t_estimate(values_N, weights_N, alpha)


def _effect(effect: str, four: list[Arm], seeds: tuple[int, ...], alpha: float) -> dict[str, object]:
    values_4SN, weights_N = np.stack([arm.over(seeds) for arm in four]), four[0].weights_N
    found = contrast(values_4SN.mean(axis=1), weights_N, effect, four[0].metric == "acc", alpha)
    per_seed = np.tensordot(CONTRASTS[effect], values_4SN, axes=1).sum(axis=1) / weights_N.sum()
    seed_low, seed_high = over_seeds(per_seed, alpha)
    return {
        "effect": effect, "factorial": NAME, "metric": four[0].metric, "seeds": len(seeds), "n": len(weights_N), "estimate": found.value,
        "low": found.low, "high": found.high, "seed_low": seed_low, "seed_high": seed_high, "p": found.p,
    }  # fmt: skip


def _frame(rows: list[dict[str, object]], notes: list[str], alpha: float = 0.05) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=_COLUMNS)
    frame["p_holm"] = holm(frame["p"].to_numpy(dtype=np.float64))
    frame["resolved"] = (frame["p_holm"] < alpha) & agree(frame["seed_low"].astype(float), frame["seed_high"].astype(float))
    frame.attrs["notes"] = notes
    return frame
