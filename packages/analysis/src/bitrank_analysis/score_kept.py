"""The share of the score of LoRA in 16 bits that each arm keeps."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from bitrank_analysis.errors import AnalysisError
from bitrank_analysis.statistics.examples import ArmResults
from bitrank_analysis.statistics.moderation import seed_spread
from bitrank_analysis.statistics.share import share_kept

FULL_LORA = "B-FP"  # LoRA of one rank on every matrix, in 16 bits
COLUMNS = ("config", "kept", "kept_low", "kept_high")


def score_kept(arms: Mapping[str, ArmResults]) -> pd.DataFrame:
    """Return one row per other arm of a task with the share of :data:`FULL_LORA`'s score, in percent.

    ``kept_low`` and ``kept_high`` are the ends of its 95 % interval, uncorrected. Arms of which no share can
    be computed (:func:`~bitrank_analysis.statistics.share.share_kept`) have no row; without
    :data:`FULL_LORA` there is none.
    """
    rows = []
    if (full := arms.get(FULL_LORA)) is not None:
        spread = seed_spread(arms.values())
        for name, arm in arms.items():
            try:
                share = share_kept(arm, full, spread)
            except AnalysisError:
                continue
            if name != FULL_LORA:
                rows.append((name, 100 * share.value, 100 * share.low, 100 * share.high))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def with_share_text(arms: pd.DataFrame) -> pd.DataFrame:
    """``arms`` with the column ``share``: the share with its interval as text, None where it is not known."""
    if "kept" not in arms:
        return arms
    texts = [
        None if pd.isna(row.kept) else f"{row.kept:.1f} [{row.kept_low:.1f}, {row.kept_high:.1f}]"
        for row in arms.itertuples()
    ]
    return arms.assign(share=texts)
