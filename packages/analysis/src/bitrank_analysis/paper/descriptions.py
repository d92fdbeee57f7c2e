"""Descriptive sentences about measurements, marked as not tested."""

from __future__ import annotations

import math

import pandas as pd

from bitrank_analysis import phrasing
from bitrank_analysis.evidence import Evidence
from bitrank_analysis.metrics import metric_of
from bitrank_analysis.statistics.measured_sizes import size_spread


def descriptions(task: Evidence) -> list[str]:
    """Sentences on the effect of 4 bits before and after training, and of stored bytes on peak memory.

    Each is omitted if its values were not measured.
    """
    return [*_recovery(task), *_memory(task)]


def _recovery(task: Evidence) -> list[str]:
    """Only for metrics that count before training: the head of a classifier is untrained then."""
    arms = task.arms.set_index("config")
    if (
        not metric_of(task.metric).counts_untrained
        or not {"B-FP", "B-Q4"} <= set(arms.index)
        or arms.loc[["B-FP", "B-Q4"], "zero"].isna().any()
    ):
        return []
    before, after = (
        [phrasing.quality(arms.loc[name, part], task.metric) for name in ("B-FP", "B-Q4")]
        for part in ("zero", "quality")
    )
    return [
        f"Before any training, NF4 moves {phrasing.name(task.metric)} from {before[0]} (B-FP) to {before[1]} "
        f"(B-Q4); after it the two stand at {after[0]} and {after[1]}."
    ]


def _memory(task: Evidence) -> list[str]:
    """Peak memory of the smallest stored model compared with the largest."""
    arms = task.arms.dropna(subset=["stored_mib", "peak_mib"])
    if len(arms) < 2:
        return []
    small, large = arms.loc[arms["stored_mib"].idxmin()], arms.loc[arms["stored_mib"].idxmax()]
    saved = large["stored_mib"] - small["stored_mib"]
    if saved < 0.05:
        return []
    return [
        f"{small['config']} stores {saved:,.1f} MiB less than {large['config']}, and training it peaks "
        f"{_peak(task, small, large)} "
        "(means over runs, no test)."
    ]


def _peak(task: Evidence, small: pd.Series, large: pd.Series) -> str:
    """The gap between two peaks, or a note that repeated runs of one config differ as much."""
    gap = small["peak_mib"] - large["peak_mib"]
    spread = size_spread(task.runs, "peak_mib")
    assert spread is not None  # peak_mib is in PRIOR
    error = spread.share * math.hypot(
        small["peak_mib"] / math.sqrt(small["seeds"]), large["peak_mib"] / math.sqrt(large["seeds"])
    )
    if abs(gap) < 2 * error:
        return f"within {2 * error:,.0f} MiB of it, which is what repeats differ by"
    return f"{abs(gap):,.0f} MiB {'higher' if gap > 0 else 'lower'}"
