"""Effects of the 2 × 2 by hand, and the front with its probabilities."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from bitrank_analysis import AnalysisError, load_study, open_store
from bitrank_analysis.statistics import factorial, pareto
from bitrank_analysis.statistics.factorial import CONTRASTS, contrast
from bitrank_analysis.statistics.pareto import on_front, resampled
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

WRONG = {"B-FP": 10, "B-Ada": 12, "B-Q4": 18, "Joint-1": 30}


def fill(maker, seeds: int = 1) -> None:
    for seed in range(seeds):
        for config, wrong in WRONG.items():
            maker.classifier(config, [i >= wrong + seed for i in range(200)], seed=seed)


def test_effects_by_hand(maker, tmp_path: Path) -> None:
    fill(maker, seeds=2)
    maker.classifier("Joint-2", [True] * 200)
    table = factorial(load_study(open_store(str(tmp_path))), "movies").set_index("effect")
    # Accuracies (seed 0) are .95 .94 .91 .85: rank ((-.01) + (-.06))/2, precision ((-.04) + (-.09))/2, interaction -.06 + .01.
    assert list(table["estimate"]) == pytest.approx([-0.035, -0.065, -0.05])
    assert list(table["seeds"]) == [2, 2, 2] and list(table["n"]) == [200] * 3
    assert (table["low"] < table["estimate"]).all() and (table["estimate"] < table["high"]).all() and (table["p_holm"] >= table["p"]).all()
    assert table["seed_low"].tolist() == pytest.approx(table["estimate"].tolist())  # both seeds lose alike
    assert "B-FP, B-Ada, B-Q4, Joint-1" in table["factorial"].iloc[0] and "Joint-2 and Joint-3 stay out" in table.attrs["notes"][0]


def test_effects_on_perplexity_are_t_tests_of_contrasts() -> None:
    generator = np.random.default_rng(0)
    four, tokens = generator.normal(300, 10, (4, 25)), np.full(25, 100.0)
    found = contrast(four, tokens, "interaction", bounded=False)
    peer = stats.ttest_1samp((four[3] - four[2] - four[1] + four[0]) / 100, 0)
    assert (found.value, found.p) == pytest.approx((peer.statistic * found.error, peer.pvalue))


def test_additive_arms_do_not_interact() -> None:
    base, weights = np.random.default_rng(1).random(50), np.ones(50)
    four = np.stack([base, base + 0.1, base + 0.3, base + 0.4])
    values = {effect: contrast(four, weights, effect, bounded=False).value for effect in CONTRASTS}
    assert values == pytest.approx({"rank": 0.1, "precision": 0.3, "interaction": 0.0})


def test_a_missing_arm_or_seed_says_so(maker, tmp_path: Path) -> None:
    maker.classifier("B-FP", [True, False])
    maker.classifier("B-Ada", [True, False])
    maker.classifier("B-Q4", [True, False])
    table = factorial(load_study(open_store(str(tmp_path))), "movies")
    assert table.empty and "it lacks Joint-1" in table.attrs["notes"][0]
    maker.classifier("Joint-1", [True, False], seed=1)
    table = factorial(load_study(open_store(str(tmp_path))), "movies")
    assert table.empty and "no seed in common" in table.attrs["notes"][0]


def sized(maker, config: str, wrong: int, mib: float, **more) -> None:
    metrics = {"eval/acc": 1 - wrong / 100, "model/mib": mib, "mem/peak_mib": 100.0}
    maker.classifier(config, [i >= wrong for i in range(100)], metrics=metrics, **more)


def test_the_front(maker, tmp_path: Path) -> None:
    sized(maker, "small", 30, 10.0)
    sized(maker, "twin", 30, 10.0)
    sized(maker, "beaten", 31, 20.0)
    sized(maker, "large", 5, 40.0)
    study = load_study(open_store(str(tmp_path)))
    table = pareto(study, "movies")
    assert list(table["config"]) == ["small", "twin", "beaten", "large"] and list(table["x"]) == [10.0, 10.0, 20.0, 40.0]
    assert list(table["on_front"]) == [True, True, False, True]
    assert list(table["probability"]) == [1.0, 1.0, 0.0, 1.0]  # what `beaten` gets right, `small` does too
    assert pareto(study, "movies").equals(table)
    by_memory = pareto(study, "movies", x="peak_mib").set_index("config")["on_front"]  # all need as much
    assert by_memory.to_dict() == {"beaten": False, "large": True, "small": False, "twin": False}


def test_the_probability_is_that_of_the_resamples(maker, tmp_path: Path) -> None:
    right = np.random.default_rng(3).random((2, 150)) < 0.7
    maker.classifier("a", right[0].tolist(), metrics={"eval/acc": 0.7, "model/mib": 10.0})
    maker.classifier("b", right[1].tolist(), metrics={"eval/acc": 0.7, "model/mib": 20.0})
    table = pareto(load_study(open_store(str(tmp_path))), "movies").set_index("config")
    gaps = right[1].astype(float) - right[0]
    # b is on the front when it is strictly better: about the normal probability of a positive mean gap (half a step for ties).
    expected = stats.norm.sf(-(gaps.sum() - 0.5) / (gaps.std() * np.sqrt(150)))
    assert table.loc["a", "probability"] == 1.0
    assert table.loc["b", "probability"] == pytest.approx(expected, abs=0.03)


def test_lower_perplexity_is_on_the_front(maker, tmp_path: Path) -> None:
    for config, nats, mib in (("low", 3.0, 20.0), ("high", 4.0, 10.0), ("beaten", 4.5, 30.0)):
        metrics = {"eval/ppl": float(np.exp(nats)), "model/mib": mib}
        maker.language_model(config, [nats * 10, nats * 20, nats * 31], [10, 20, 30], metrics=metrics)
    table = pareto(load_study(open_store(str(tmp_path))), "wiki").set_index("config")
    assert table["on_front"].to_dict() == {"high": True, "low": True, "beaten": False}
    assert table.loc["low", "low"] <= table.loc["low", "quality"] <= table.loc["low", "high"]


def test_what_was_not_measured_is_said(maker, tmp_path: Path) -> None:
    maker.classifier("B-FP", [True, False], metrics={"eval/acc": 0.5, "model/mib": 1.0})
    study = load_study(open_store(str(tmp_path)))
    with pytest.raises(AnalysisError, match="peak_mib was not recorded for B-FP"):
        pareto(study, "movies", x="peak_mib")
    with pytest.raises(AnalysisError, match="x to be one of model_mib, peak_mib, got 'bits'"):
        pareto(study, "movies", x="bits")


points = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=8)


@given(points)
def test_the_front_is_what_nothing_dominates(arms: list[tuple[int, int]]) -> None:
    x, quality = np.array([a[0] for a in arms], float), np.array([[a[1] for a in arms]], float)
    beaten = [any(o != a and o[0] <= a[0] and o[1] >= a[1] for o in arms) for a in arms]
    assert list(on_front(x, quality)[0]) == [not b for b in beaten]


def test_resamples_are_shared_and_weighted() -> None:
    values, weights = np.random.default_rng(0).random((1, 40)) * 50, np.random.default_rng(1).integers(1, 90, 40).astype(float)
    drawn = resampled(np.vstack([values, values + 2 * weights]), weights, 700, seed=0)
    assert drawn.shape == (700, 2) and np.allclose(drawn[:, 1] - drawn[:, 0], 2.0)
    assert drawn[:, 0].mean() == pytest.approx(values.sum() / weights.sum(), rel=0.02)
