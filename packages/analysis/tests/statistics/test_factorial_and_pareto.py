"""Effects of the 2 × 2 factorial against worked values, and the front with its probabilities."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from bitrank_analysis import AnalysisError, load_study, open_store
from bitrank_analysis.statistics import ONE_SEED, factorial, pareto
from bitrank_analysis.statistics.factorial import CONTRASTS, contrast
from bitrank_analysis.statistics.pareto import on_front, resampled
from bitrank_analysis.statistics.verdicts import DIFFERS
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

WRONG = {"B-FP": 10, "B-Ada": 12, "B-Q4": 18, "Joint-1": 30}


def add_four_arms(maker, seeds: int = 1) -> None:
    for seed in range(seeds):
        for config, wrong in WRONG.items():
            maker.classifier(config, [i >= wrong + seed for i in range(200)], seed=seed)


def test_factorial_effects_equal_worked_values(maker, tmp_path: Path) -> None:
    add_four_arms(maker, seeds=2)
    maker.classifier("Joint-2", [True] * 200)
    table = factorial(load_study(open_store(str(tmp_path))), "movies").set_index("effect")
    # Accuracies (seed 0): .95 .94 .91 .85. Rank ((-.01) + (-.06))/2, precision ((-.04) + (-.09))/2,
    # interaction -.06 + .01.
    assert list(table["estimate"]) == pytest.approx([-0.035, -0.065, -0.05])
    assert list(table["seeds"]) == [2, 2, 2] and list(table["n"]) == [200] * 3
    assert (
        (table["low"] < table["estimate"]).all()
        and (table["estimate"] < table["high"]).all()
        and (table["p_holm"] >= table["p"]).all()
    )
    # Both seeds have equal effects: half an answer of spread. The sums of squared weights are 1, 1 and 4.
    halves = stats.t.ppf(0.975, 3) * np.sqrt(np.array([1, 1, 4]) / 2) * 0.5 / 200
    assert table["seed_low"].tolist() == pytest.approx(list(table["estimate"] - halves))
    assert (
        "B-FP, B-Ada, B-Q4, Joint-1" in table["factorial"].iloc[0]
        and "Joint-2 and Joint-3 stay out" in table.attrs["notes"][0]
    )


def test_factorial_effect_on_perplexity_equals_scipys_permutation_test() -> None:
    generator = np.random.default_rng(0)
    four_values, tokens = generator.normal(300, 10, (4, 10)).round(), np.full(10, 100.0)
    found = contrast(four_values, tokens, "interaction", bounded=False)
    gaps = four_values[3] - four_values[2] - four_values[1] + four_values[0]
    reference = stats.permutation_test(
        (gaps,),
        lambda x, axis: np.abs(x.sum(axis=axis)),
        permutation_type="samples",
        vectorized=True,
        n_resamples=np.inf,
        alternative="greater",
    )
    assert (found.value, found.p) == pytest.approx((gaps.mean() / 100, reference.pvalue))


def test_effects_of_one_seed_have_a_separate_verdict(maker, new_maker, tmp_path: Path) -> None:
    (tmp_path / "three").mkdir()
    add_four_arms(maker)
    add_four_arms(new_maker(tmp_path / "three"), seeds=3)
    one, three = (
        factorial(load_study(open_store(str(folder))), "movies") for folder in (tmp_path, tmp_path / "three")
    )
    assert (
        set(one["verdict"]) <= {DIFFERS, "unresolved"}
        and DIFFERS in set(one["verdict"])
        and ONE_SEED in one.attrs["notes"]
    )
    assert (
        "resolved" in set(three["verdict"])
        and DIFFERS not in set(three["verdict"])
        and ONE_SEED not in three.attrs["notes"]
    )


def test_additive_arms_have_no_interaction() -> None:
    base, weights = np.random.default_rng(1).random(50), np.ones(50)
    four_values = np.stack([base, base + 0.1, base + 0.3, base + 0.4])
    values = {effect: contrast(four_values, weights, effect, bounded=False).value for effect in CONTRASTS}
    assert values == pytest.approx({"rank": 0.1, "precision": 0.3, "interaction": 0.0})


def test_missing_arm_or_seed_gives_an_empty_table_with_the_reason(maker, tmp_path: Path) -> None:
    maker.classifier("B-FP", [True, False])
    maker.classifier("B-Ada", [True, False])
    maker.classifier("B-Q4", [True, False])
    table = factorial(load_study(open_store(str(tmp_path))), "movies")
    assert table.empty and "it lacks Joint-1" in table.attrs["notes"][0]
    maker.classifier("Joint-1", [True, False], seed=1)
    table = factorial(load_study(open_store(str(tmp_path))), "movies")
    assert table.empty and "no seed in common" in table.attrs["notes"][0]


def add_arm_of_size(maker, config: str, wrong: int, mib: float, **more) -> None:
    metrics = {"eval/acc": 1 - wrong / 100, "model/mib": mib, "lora/mib": 0.0, "mem/peak_mib": 100.0}
    maker.classifier(config, [i >= wrong for i in range(100)], metrics=metrics, **more)


def test_pareto_front_of_stored_size(maker, tmp_path: Path) -> None:
    add_arm_of_size(maker, "small", 30, 10.0)
    add_arm_of_size(maker, "twin", 30, 10.0)
    add_arm_of_size(maker, "beaten", 31, 20.0)
    add_arm_of_size(maker, "large", 5, 40.0)
    study = load_study(open_store(str(tmp_path)))
    table = pareto(study, "movies")
    assert list(table["config"]) == ["small", "twin", "beaten", "large"] and list(table["x"]) == [
        10.0,
        10.0,
        20.0,
        40.0,
    ]
    assert list(table["on_front"]) == [True, True, False, True]
    assert list(table["probability"]) == [
        1.0,
        1.0,
        0.0,
        1.0,
    ]  # `small` gets every example right that `beaten` does
    assert pareto(study, "movies").equals(table)
    assert list(table["membership"]) == ["yes", "yes", "no", "yes"]
    assert (table["x_low"] == table["x"]).all()
    assert table.attrs["size_share"] == 0.0  # stored bytes follow from the plan
    by_memory = pareto(study, "movies", x="peak_mib").set_index("config")["on_front"]  # all peaks are equal
    assert by_memory.to_dict() == {"beaten": False, "large": True, "small": False, "twin": False}


def add_arm_with_peak(maker, config: str, wrong: int, peak: float, seed: int = 0) -> None:
    metrics = {"eval/acc": 1 - wrong / 1000, "model/mib": 10.0, "lora/mib": 0.0, "mem/peak_mib": peak}
    maker.classifier(config, [i >= wrong for i in range(1000)], metrics=metrics, seed=seed)


def test_front_is_unresolved_between_peaks_of_1295_and_1300_mib(maker, tmp_path: Path) -> None:
    """With one seed the prior applies: repeated runs vary by 2 %.

    A third arm of equal quality with half the peak is on the front with near certainty.
    """
    add_arm_with_peak(maker, "B-FP", 100, 1295.0)
    add_arm_with_peak(maker, "B-Q4", 100, 1300.0)
    table = pareto(load_study(open_store(str(tmp_path))), "movies", x="peak_mib").set_index("config")
    assert list(table["on_front"]) == [True, False] and set(table["membership"]) == {"unresolved"}
    expected = stats.t.cdf(np.log(1300 / 1295) / (0.02 * np.sqrt(2)), 4)
    assert table.loc["B-FP", "probability"] == pytest.approx(expected, abs=0.03)
    assert table.attrs["size_share"] == pytest.approx(0.02)
    assert table.loc["B-FP", "x_low"] < 1270 and table.loc["B-FP", "x_high"] > 1320
    add_arm_with_peak(maker, "small", 100, 650.0)
    table = pareto(load_study(open_store(str(tmp_path))), "movies", x="peak_mib").set_index("config")
    assert table["membership"].to_dict() == {"small": "yes", "B-FP": "no", "B-Q4": "no"}


def test_spread_of_peaks_is_estimated_from_seeds(new_maker, tmp_path: Path) -> None:
    probabilities = {}
    for name, noise in (("steady", 0.5), ("varying", 200.0)):
        (tmp_path / name).mkdir()
        maker = new_maker(tmp_path / name)
        for seed, sign in enumerate((-1, 0, 1)):
            for config, peak in (("a", 1200.0), ("b", 1300.0), ("c", 1400.0), ("d", 1500.0), ("e", 1600.0)):
                add_arm_with_peak(maker, config, 100, peak + sign * noise, seed)
        table = pareto(load_study(open_store(str(tmp_path / name))), "movies", x="peak_mib").set_index(
            "config"
        )
        probabilities[name] = table.loc["a", "probability"]
        expected = np.sqrt((10 * (noise / 1400) ** 2 + 4 * 0.02**2) / 14)
        assert table.attrs["size_share"] == pytest.approx(expected, rel=0.1)
    assert probabilities["varying"] < 0.95 < probabilities["steady"]


def test_large_variation_over_seeds_leaves_the_front_unresolved(new_maker, tmp_path: Path) -> None:
    """The larger arm is three points better; it is on the front with certainty only if its seeds agree."""
    membership = {}
    for name, seed_shift in (("steady", 1), ("varying", 40)):
        (tmp_path / name).mkdir()
        maker = new_maker(tmp_path / name)
        for seed, sign in enumerate((-1, 0, 1)):
            for config, wrong, mib in (
                ("small", 130 - sign * seed_shift, 10.0),
                ("large", 100 + sign * seed_shift, 20.0),
            ):
                metrics = {
                    "eval/acc": 1 - wrong / 1000,
                    "model/mib": mib,
                    "lora/mib": 0.0,
                    "mem/peak_mib": 100.0,
                }
                maker.classifier(config, [i >= wrong for i in range(1000)], metrics=metrics, seed=seed)
        table = pareto(load_study(open_store(str(tmp_path / name))), "movies").set_index("config")
        membership[name] = table.loc["large", "membership"]
    assert membership == {"steady": "yes", "varying": "unresolved"}


def test_front_probability_equals_the_normal_approximation(maker, tmp_path: Path) -> None:
    right = np.random.default_rng(3).random((2, 150)) < 0.7
    maker.classifier("a", right[0].tolist(), metrics={"eval/acc": 0.7, "model/mib": 10.0, "lora/mib": 0.0})
    maker.classifier("b", right[1].tolist(), metrics={"eval/acc": 0.7, "model/mib": 20.0, "lora/mib": 0.0})
    table = pareto(load_study(open_store(str(tmp_path))), "movies").set_index("config")
    gaps = right[1].astype(float) - right[0]
    # b is on the front if it is strictly better: approximately the normal probability of a positive mean gap
    # (with half a step for ties).
    expected = stats.norm.sf(-(gaps.sum() - 0.5) / (gaps.std() * np.sqrt(150)))
    assert table.loc["a", "probability"] == 1.0
    assert table.loc["b", "probability"] == pytest.approx(expected, abs=0.03)


def test_lower_perplexity_is_on_the_front(maker, tmp_path: Path) -> None:
    for config, nats, mib in (("low", 3.0, 20.0), ("high", 4.0, 10.0), ("beaten", 4.5, 30.0)):
        metrics = {"eval/ppl": float(np.exp(nats)), "model/mib": mib, "lora/mib": 0.0}
        tokens = [10, 20, 30, 40, 50, 60]
        maker.language_model(
            config, [nats * count + at for at, count in enumerate(tokens)], tokens, metrics=metrics
        )
    table = pareto(load_study(open_store(str(tmp_path))), "wiki").set_index("config")
    assert table["on_front"].to_dict() == {"high": True, "low": True, "beaten": False}
    assert table.loc["low", "low"] <= table.loc["low", "quality"] <= table.loc["low", "high"]


def test_pareto_of_an_unmeasured_size_raises(maker, tmp_path: Path) -> None:
    maker.classifier("B-FP", [True, False], metrics={"eval/acc": 0.5, "model/mib": 1.0, "lora/mib": 0.0})
    study = load_study(open_store(str(tmp_path)))
    with pytest.raises(AnalysisError, match="peak_mib was not recorded for B-FP"):
        pareto(study, "movies", x="peak_mib")
    with pytest.raises(AnalysisError, match="x to be one of stored_mib, peak_mib, got 'bits'"):
        pareto(study, "movies", x="bits")


points = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=8)


@given(points)
def test_front_contains_exactly_the_non_dominated_arms(arms: list[tuple[int, int]]) -> None:
    x, quality = np.array([a[0] for a in arms], float), np.array([[a[1] for a in arms]], float)
    dominated = [any(o != a and o[0] <= a[0] and o[1] >= a[1] for o in arms) for a in arms]
    assert list(on_front(x, quality)[0]) == [not b for b in dominated]


def test_resamples_are_shared_between_arms_and_weighted() -> None:
    values, weights = (
        np.random.default_rng(0).random((1, 40)) * 50,
        np.random.default_rng(1).integers(1, 90, 40).astype(float),
    )
    drawn = resampled(np.vstack([values, values + 2 * weights]), weights, 700, seed=0)
    assert drawn.shape == (700, 2) and np.allclose(drawn[:, 1] - drawn[:, 0], 2.0)
    assert drawn[:, 0].mean() == pytest.approx(values.sum() / weights.sum(), rel=0.02)
