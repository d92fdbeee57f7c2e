"""The share of a score that is kept: exact values, and intervals equal to the formula."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from bitrank_analysis.errors import AnalysisError
from bitrank_analysis.score_kept import score_kept, with_share_text
from bitrank_analysis.statistics.examples import ArmResults
from bitrank_analysis.statistics.moderation import seed_spread
from bitrank_analysis.statistics.share import share_kept


def classifier(config: str, *counts: int, n: int = 400) -> ArmResults:
    """An arm that gets the first ``counts`` examples right, one number for each seed."""
    values_SN = np.array([[1.0] * count + [0.0] * (n - count) for count in counts])
    return ArmResults(config, "acc", tuple(range(len(counts))), values_SN, np.ones(n))


def test_share_of_accuracy_is_the_ratio_with_the_error_of_the_linearized_ratio() -> None:
    ours, theirs = classifier("B-Q4", 300), classifier("B-FP", 360)
    found = share_kept(ours, theirs, None)
    assert found.value == pytest.approx(300 / 360) and found.seeds == 1
    rests_N = (ours.values_SN[0] - 300 / 360 * theirs.values_SN[0]) / 0.9
    padded_N = np.concatenate([rests_N, [1 / 0.9, -1 / 0.9]])
    half = 1.959964 * padded_N.std() / math.sqrt(402)
    assert (found.low, found.high) == pytest.approx((300 / 360 - half, 300 / 360 + half), rel=1e-3)


def test_equal_arms_keep_the_whole_score_and_more_confidence_widens_the_interval() -> None:
    arms = [classifier(name, 360, 362, 359) for name in ("B-Q4", "B-FP")]
    spread = seed_spread(arms)
    found, wide = share_kept(*arms, spread, 0.05), share_kept(*arms, spread, 0.01)
    assert found.value == 1.0 and found.seeds == 3
    assert wide.low < found.low < 1.0 < found.high < wide.high
    assert found.low > 0.98


def test_share_of_perplexity_is_that_of_the_baseline_divided_by_the_candidates() -> None:
    tokens_N = np.array([100.0, 50.0, 80.0, 120.0, 60.0, 90.0, 70.0])
    theirs = ArmResults("B-FP", "ppl", (0,), 3.0 * tokens_N[None], tokens_N)
    ours = ArmResults("B-Q4", "ppl", (0,), (3.0 + math.log(1.25)) * tokens_N[None], tokens_N)
    found = share_kept(ours, theirs, None)
    assert found.value == pytest.approx(0.8), "perplexity is 25 % higher"
    assert (found.low, found.high) == pytest.approx((0.8, 0.8)), "every document has the same ratio"


def test_share_of_token_accuracy_weighs_documents_by_their_tokens() -> None:
    tokens_N = np.array([100.0, 50.0, 80.0, 120.0, 60.0, 90.0, 70.0])
    theirs = ArmResults("B-FP", "token_acc", (0,), 0.5 * tokens_N[None], tokens_N)
    ours = ArmResults("B-Q4", "token_acc", (0,), 0.4 * tokens_N[None], tokens_N)
    found = share_kept(ours, theirs, None)
    assert (found.value, found.low, found.high) == pytest.approx((0.8, 0.8, 0.8)), "equal in every document"


def test_share_without_a_common_seed_or_of_nothing_is_refused() -> None:
    other = ArmResults("B-FP", "acc", (7,), np.ones((1, 400)), np.ones(400))
    with pytest.raises(AnalysisError, match="no seed in common"):
        share_kept(classifier("B-Q4", 300), other, None)
    with pytest.raises(AnalysisError, match="a score of 0"):
        share_kept(classifier("B-Q4", 300), classifier("B-FP", 0), None)


def test_every_other_arm_has_its_share_of_full_lora_in_percent() -> None:
    counts = {"B-Q4": 300, "B-FP": 360, "Plan-Q4": 360}
    found = score_kept({name: classifier(name, count) for name, count in counts.items()})
    assert list(found["config"]) == ["B-Q4", "Plan-Q4"]
    assert list(found["kept"]) == pytest.approx([100 * 300 / 360, 100.0])
    assert (found["kept_low"] < found["kept"]).all() and (found["kept"] < found["kept_high"]).all()


def test_no_share_without_full_lora_and_none_without_a_common_seed() -> None:
    assert score_kept({"B-Q4": classifier("B-Q4", 300)}).empty
    full, other = classifier("B-FP", 360), classifier("B-Q4", 300)
    assert score_kept({"B-FP": full, "B-Q4": replace(other, seeds=(7,))}).empty


def test_share_is_shown_with_its_interval_and_nothing_for_full_lora() -> None:
    shares = {"kept": [math.nan, 86.24], "kept_low": [math.nan, 84.4], "kept_high": [math.nan, 88.06]}
    arms = pd.DataFrame({"config": ["B-FP", "B-Q4"], **shares})
    full, other = with_share_text(arms)["share"]
    assert pd.isna(full) and other == "86.2 [84.4, 88.1]"
    assert "share" not in with_share_text(arms[["config"]])
