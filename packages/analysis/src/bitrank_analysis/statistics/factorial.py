"""2 × 2 factorial: rank (fixed, adaptive) × precision (16-bit, NF4), main effects and interaction.

Each effect is a contrast of four paired values. Four arms form the full factorial: B-FP, B-Ada, B-Q4 and
Joint-1. Joint-2 and Joint-3 are excluded: both use mixed precision, but by different rules (edges high;
attention high), so their difference is not one of rank alone.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import stats

from bitrank_analysis.metrics import metric_of
from bitrank_analysis.statistics.confidence import Confidence, SeedError, of_bounded, of_documents
from bitrank_analysis.statistics.examples import ArmResults, common_seeds, load_arms
from bitrank_analysis.statistics.families import holm
from bitrank_analysis.statistics.intervals import Floats
from bitrank_analysis.statistics.moderation import SeedSpread, seed_spread
from bitrank_analysis.statistics.paired import paired_test
from bitrank_analysis.statistics.seeds import ONE_SEED
from bitrank_analysis.statistics.verdicts import effect_verdict
from bitrank_analysis.study import Study

CELLS = {
    ("fixed", "16-bit"): "B-FP",
    ("adaptive", "16-bit"): "B-Ada",
    ("fixed", "NF4"): "B-Q4",
    ("adaptive", "NF4"): "Joint-1",
}
NAME = "rank {fixed, adaptive} × precision {16-bit, NF4}: " + ", ".join(CELLS.values())
# Weights of B-FP, B-Ada, B-Q4, Joint-1. A main effect is the mean of two differences; the interaction is
# their difference.
CONTRASTS = {
    "rank": (-0.5, 0.5, -0.5, 0.5),
    "precision": (-0.5, -0.5, 0.5, 0.5),
    "interaction": (1.0, -1.0, -1.0, 1.0),
}
_COLUMNS = [
    "effect",
    "factorial",
    "metric",
    "seeds",
    "n",
    "estimate",
    "low",
    "high",
    "seed_low",
    "seed_high",
    "p",
    "p_holm",
    "verdict",
]


def factorial(study: Study, task: str, alpha: float = 0.05) -> pd.DataFrame:
    """Effects of the 2 × 2 factorial on accuracy, or on log-perplexity (nats per token; negative is better).

    Columns: effect (rank: adaptive − fixed; precision: NF4 − 16-bit; interaction), factorial (the arms),
    metric, seeds, n, estimate, low and high (over examples or documents, with several seeds also over seeds),
    seed_low and seed_high (over seeds alone, NaN with one), p, p_holm (over the three effects), verdict
    (resolved if p_holm < α, under a separate name with one seed; else unresolved).

    The table is empty if one of the four arms, or a seed common to them, is missing; ``attrs["notes"]`` gives
    the reason. Raises :class:`AnalysisError` as :func:`load_arms` does.
    """
    arms = load_arms(study, task)
    lacking = [config for config in CELLS.values() if config not in arms]
    four = [arms[config] for config in CELLS.values() if config in arms]
    seeds = () if lacking else common_seeds(*four)
    if not seeds:
        why = f"it lacks {', '.join(lacking)}" if lacking else "its four arms have no seed in common"
        return _frame([], [f"The factorial {NAME} needs all four arms; {why}."])
    spread = seed_spread(arms.values())
    rows = [_effect(effect, four, seeds, spread, alpha) for effect in CONTRASTS]
    notes = [
        f"The factorial is {NAME}. Joint-2 and Joint-3 stay out: their mixed precision follows different "
        "rules."
    ]
    return _frame(rows, notes if len(seeds) > 1 else [*notes, ONE_SEED], alpha)


def contrast(
    values_4N: Floats, weights_N: Floats, effect: str, bounded: bool, seeds: SeedError | None = None
) -> Confidence:
    """One effect from four paired values (4, N), averaged over seeds, in the order of ``CELLS``.

    ``bounded`` values are within [0, 1].
    """
    values_N = np.asarray(CONTRASTS[effect], dtype=np.float64) @ values_4N
    span = float(np.abs(CONTRASTS[effect]).sum() / 2)
    return of_bounded(values_N, span, seeds) if bounded else of_documents(values_N, weights_N, seeds)


def _effect(
    effect: str, four: list[ArmResults], seeds: tuple[int, ...], spread: SeedSpread | None, alpha: float
) -> dict[str, object]:
    values_4SN, weights_N = np.stack([arm.over(seeds) for arm in four]), four[0].weights_N
    per_seed_S = np.tensordot(CONTRASTS[effect], values_4SN, axes=1).sum(axis=1) / weights_N.sum()
    size = float(np.square(CONTRASTS[effect]).sum())
    over = spread.error(per_seed_S, size) if spread and len(seeds) > 1 else None
    half = float(stats.t.ppf(1 - alpha / 2, over.df)) * over.error if over else float("nan")
    found = contrast(values_4SN.mean(axis=1), weights_N, effect, _is_bounded(four[0]), over)
    low, high = found.interval(alpha)
    return {
        "effect": effect, "factorial": NAME, "metric": four[0].metric, "seeds": len(seeds),
        "n": len(weights_N), "estimate": found.value,
        "low": low, "high": high, "seed_low": found.value - half, "seed_high": found.value + half,
        "p": found.p,
    }  # fmt: skip


def _is_bounded(arm: ArmResults) -> bool:
    return paired_test(metric_of(arm.metric).test).bounded


def _frame(rows: list[dict[str, object]], notes: list[str], alpha: float = 0.05) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=_COLUMNS)
    frame["p_holm"] = holm(frame["p"].to_numpy(dtype=np.float64))
    outcomes = zip(frame["p_holm"] < alpha, frame["seeds"], strict=True)
    frame["verdict"] = pd.Series([effect_verdict(*row) for row in outcomes], dtype=object)
    frame.attrs["notes"] = notes
    return frame
