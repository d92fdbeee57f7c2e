"""Comparison and arm tables of a study: exact values on small stores, and errors."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from bitrank_analysis import AnalysisError, Study, load_study, open_store
from bitrank_analysis.statistics import ONE_SEED, arms, compare
from bitrank_analysis.statistics.accuracy import Paired, equivalence, mcnemar_exact, newcombe
from bitrank_analysis.statistics.intervals import padded
from bitrank_analysis.statistics.verdicts import ALIKE, DIFFERS, UNRESOLVED
from scipy import stats
from statsmodels.stats.proportion import proportion_confint


def study_of(folder: Path) -> Study:
    return load_study(open_store(str(folder)))


def row_of(table: pd.DataFrame, candidate: str, baseline: str) -> dict[str, object]:
    return table[(table["candidate"] == candidate) & (table["baseline"] == baseline)].iloc[0].to_dict()


def right(n: int, wrong: set[int]) -> list[bool]:
    return [i not in wrong for i in range(n)]


def test_one_seed_of_accuracy_equals_mcnemar_and_newcombe(maker, tmp_path: Path) -> None:
    maker.classifier("B-FP", right(200, set(range(40))))
    maker.classifier("B-Q4", right(200, set(range(36, 60))))
    maker.classifier("Joint-1", right(200, set(range(10, 90))))
    table = compare(study_of(tmp_path), "movies")
    assert list(zip(table["baseline"], table["candidate"], strict=True)) == [
        ("B-FP", "B-Q4"),
        ("B-FP", "Joint-1"),
        ("B-Q4", "Joint-1"),
    ]
    row, pairs = row_of(table, "B-Q4", "B-FP"), Paired(both=140, gain=36, loss=20, neither=4)
    assert (row["task"], row["metric"], row["seeds"], row["n"]) == ("movies", "acc", 1, 200)
    assert (row["candidate_quality"], row["baseline_quality"], row["difference"]) == pytest.approx(
        (0.88, 0.8, 0.08)
    )
    assert (row["discordant_gain"], row["discordant_loss"], row["effect"]) == (36, 20, 36 / 56 - 0.5)
    assert (row["low"], row["high"]) == pytest.approx(newcombe(pairs))
    assert (row["p"], row["tost_p"]) == pytest.approx((mcnemar_exact(pairs), equivalence(pairs, 0.01)))
    assert row["test"] == "McNemar, exact" and row["least_significant"] == 16 / 200
    assert row["tost_best_p"] == equivalence(Paired(144, 28, 28, 0), 0.01) < row["tost_p"]
    assert math.isnan(row["seed_low"]) and math.isnan(row["ratio"]) and table.attrs["notes"] == [ONE_SEED]


def test_holm_covers_all_rows_and_determines_the_verdict(maker, tmp_path: Path) -> None:
    maker.classifier("B-FP", right(1000, set(range(100))))
    maker.classifier("B-Q4", right(1000, set(range(100))))
    maker.classifier("B-Ada", right(1000, set(range(60))))
    maker.classifier("Joint-1", right(1000, set(range(80, 200))))
    table = compare(study_of(tmp_path), "movies")
    by_p = table.sort_values("p", kind="stable")
    steps = [min(1.0, p * (len(by_p) - n)) for n, p in enumerate(by_p["p"])]
    assert list(by_p["p_holm"]) == pytest.approx(list(np.maximum.accumulate(steps)))
    verdicts = {(row.candidate, row.baseline): (row.verdict, row.equivalent) for row in table.itertuples()}
    assert verdicts == {
        ("B-Ada", "B-FP"): (DIFFERS, False),
        ("B-Q4", "B-FP"): (ALIKE, True),
        ("Joint-1", "B-FP"): (UNRESOLVED, False),
        ("B-Ada", "B-Q4"): (DIFFERS, False),
        ("Joint-1", "B-Q4"): (UNRESOLVED, False),
    }


@pytest.mark.parametrize(("seeds", "expected_verdict"), [(1, DIFFERS), (3, "better")])
def test_difference_and_equivalence_can_both_hold(
    maker, tmp_path: Path, seeds: int, expected_verdict: str
) -> None:
    for seed in range(seeds):
        maker.classifier("B-FP", right(4000, set(range(400))), seed=seed)
        maker.classifier("B-Q4", right(4000, set(range(16, 400 + seed % 2))), seed=seed)
    row = row_of(compare(study_of(tmp_path), "movies"), "B-Q4", "B-FP")
    assert (row["verdict"], row["equivalent"]) == (expected_verdict, True)


def test_zero_discordant_pairs_give_p_one_and_no_effect_size(maker, tmp_path: Path) -> None:
    for config in ("B-FP", "B-Q4"):
        maker.classifier(config, right(50, {1, 2}))
    row = row_of(compare(study_of(tmp_path), "movies"), "B-Q4", "B-FP")
    assert (row["difference"], row["p"], row["p_holm"], row["verdict"]) == (0.0, 1.0, 1.0, "unresolved")
    assert row["low"] < 0 < row["high"] and math.isnan(row["effect"]) and math.isnan(row["least_significant"])
    assert row["detectable"] > 0.1


def test_several_seeds_combine_errors_over_examples_and_seeds(maker, tmp_path: Path) -> None:
    for seed, (a, b) in enumerate([(20, 30), (22, 31), (21, 29)]):
        maker.classifier("B-FP", right(300, set(range(b))), seed=seed)
        maker.classifier("B-Q4", right(300, set(range(a))), seed=seed)
    table = compare(study_of(tmp_path), "movies")
    row, per_seed = row_of(table, "B-Q4", "B-FP"), np.array([10, 9, 8]) / 300
    pooled = (np.var([30, 31, 29], ddof=1) + np.var([20, 22, 21], ddof=1)) / 2 / 300**2
    # Two arms of three seeds each with equal spreads: 4 degrees of freedom.
    seeds_half_width = stats.t.ppf(0.975, 4) * math.sqrt(2 * pooled / 3)
    assert (row["seeds"], row["n"], row["discordant_gain"], row["discordant_loss"]) == (3, 300, 27, 0)
    assert row["difference"] == pytest.approx(per_seed.mean())
    assert (row["seed_low"], row["seed_high"]) == pytest.approx(
        (per_seed.mean() - seeds_half_width, per_seed.mean() + seeds_half_width)
    )
    mean_N = np.zeros(300)
    for start, stop in ((20, 30), (22, 31), (21, 29)):
        mean_N[start:stop] += 1 / 3
    _, error = padded(mean_N)
    half = math.hypot(1.96 * error, seeds_half_width)
    assert row["seed_low"] > row["low"] and row["seed_high"] < row["high"]
    assert (row["high"] - row["low"]) / 2 == pytest.approx(half, rel=0.1)
    assert row["test"] == "normal over examples, moderated t over seeds" and table.attrs["notes"] == []


def test_only_common_seeds_are_compared(maker, tmp_path: Path) -> None:
    maker.classifier("B-FP", right(50, {1}), seed=0)
    maker.classifier("B-FP", right(50, set(range(25))), seed=1)
    maker.classifier("B-Q4", right(50, {2}), seed=0)
    maker.classifier("B-Ada", right(50, {2}), seed=2)
    table = compare(study_of(tmp_path), "movies")
    assert [(row.candidate, row.seeds, row.difference) for row in table.itertuples()] == [("B-Q4", 1, 0.0)]
    assert "B-Ada and B-FP have no seed in common, so they are not compared." in table.attrs["notes"]


def test_perplexity_pairs_documents_not_windows(maker, tmp_path: Path) -> None:
    ids, tokens = ["a", "a", "b", "c", "c", "d"], [10, 30, 40, 20, 20, 40]
    maker.language_model("B-FP", [30.0, 90.0, 120.0, 60.0, 60.0, 120.0], tokens, ids)
    maker.language_model("B-Q4", [32.0, 92.0, 121.0, 62.0, 61.0, 126.0], tokens, ids)
    table = compare(study_of(tmp_path), "wiki")
    row = row_of(table, "B-Q4", "B-FP")
    assert (row["n"], row["metric"], row["verdict"]) == (4, "ppl", "unresolved")
    assert row["difference"] == pytest.approx(14 / 160)
    assert row["p"] == pytest.approx(2 / 2**4)  # the smallest p-value of four documents
    assert (
        row["ratio"]
        == pytest.approx(row["candidate_quality"] / row["baseline_quality"])
        == pytest.approx(math.exp(14 / 160))
    )
    assert row["test"] == "sign flips of documents" and math.isnan(row["low"])
    assert row["margin"] == math.log(1.02) and math.isnan(row["discordant_gain"])
    too_few_note = (
        "The 4 test documents of wiki are too few for a verdict over 1 comparisons, whatever the arms are "
        "worth: 6 is the least."
    )
    assert table.attrs["notes"] == [ONE_SEED, too_few_note]


def test_lower_perplexity_is_better(maker, tmp_path: Path) -> None:
    generator, tokens = np.random.default_rng(0), [100] * 30
    base = 300 + generator.normal(0, 20, 30)
    for seed in range(2):
        maker.language_model("B-FP", list(base), tokens, seed=seed)
        maker.language_model("Joint-2", list(base - 5 + generator.normal(0, 1, 30)), tokens, seed=seed)
        maker.language_model("Joint-3", list(base + generator.normal(0, 0.1, 30)), tokens, seed=seed)
    table = compare(study_of(tmp_path), "wiki", baselines=["B-FP"])
    assert list(table["verdict"]) == ["better", "as good as"]
    assert (table["tost_best_p"] <= table["tost_p"]).all()


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["e0", "e1", "x2"], "different examples: 2 ids are in only one"),
        (["e0", "e1"], "different examples: 1 ids"),
    ],
)
def test_arms_evaluated_on_different_examples_raise(
    maker, tmp_path: Path, ids: list[str], message: str
) -> None:
    maker.classifier("B-FP", [True] * 3)
    maker.classifier("B-Q4", [True] * len(ids), ids=ids)
    with pytest.raises(
        AnalysisError, match=rf"B-FP movies s0 \(0+1\) and B-Q4 movies s0 \(0+2\) were evaluated on {message}"
    ):
        compare(study_of(tmp_path), "movies")


def test_different_labels_tokens_or_models_raise(new_maker, tmp_path: Path) -> None:
    def assert_raises(name: str, fill, message: str) -> None:
        (tmp_path / name).mkdir()
        fill(new_maker(tmp_path / name))
        study = study_of(tmp_path / name)
        with pytest.raises(AnalysisError, match=message):
            compare(study, study.runs["task"].iloc[0])

    def labels(maker) -> None:
        maker.classifier("B-FP", [True, True])
        maker.classifier("B-Q4", [True, True], ids=["e1", "e0"])

    def tokens(maker) -> None:
        maker.language_model("B-FP", [3.0, 3.0], [5, 5])
        maker.language_model("B-Q4", [3.0, 3.0], [5, 6])

    def models(maker) -> None:
        maker.classifier("B-FP", [True, True])
        maker.classifier("B-Q4", [True, True], tags={"model": "large"})

    assert_raises("labels", labels, "2 ids have other labels")
    assert_raises("tokens", tokens, "1 ids have other numbers of tokens")
    assert_raises("models", models, "cannot be paired: model tiny with acc against model large with acc")


def test_unusable_predictions_raise(new_maker, tmp_path: Path) -> None:
    def assert_raises(name: str, message: str, **run) -> None:
        (tmp_path / name).mkdir()
        new_maker(tmp_path / name).run("B-FP", metrics={"eval/acc": 0.5}, **run)
        with pytest.raises(AnalysisError, match=message):
            compare(study_of(tmp_path / name), "movies")

    assert_raises("none", "has no predictions.parquet")
    assert_raises("columns", "have no prediction; expected", predictions={"id": ["a"], "label": [1]})
    assert_raises("empty", "have no rows", predictions={"id": [], "label": [], "prediction": []})
    assert_raises(
        "twice", "hold 1 ids twice", predictions={"id": ["a", "a"], "label": [1, 1], "prediction": [1, 1]}
    )
    assert_raises(
        "null", "not finite", predictions={"id": ["a", "b"], "label": [1, 1], "prediction": [1, None]}
    )


def test_loss_that_is_not_finite_raises(maker, tmp_path: Path) -> None:
    maker.language_model("B-FP", [3.0, math.nan], [5, 5], metrics={"eval/ppl": 20.0})
    with pytest.raises(AnalysisError, match="hold values that are not finite"):
        compare(study_of(tmp_path), "wiki")


def test_one_arm_or_no_baseline_gives_an_empty_table_with_notes(maker, tmp_path: Path) -> None:
    maker.classifier("B-FP", [True, False])
    table = compare(study_of(tmp_path), "movies")
    assert table.empty and {"difference", "verdict", "p_holm"} <= set(table.columns)
    assert table.attrs["notes"] == [
        "Baseline B-Q4 has no finished run of movies.",
        "Only B-FP finished movies; there is nothing to compare it with.",
    ]  # fmt: skip


def test_unknown_task_raises_with_the_known_tasks(maker, tmp_path: Path) -> None:
    maker.classifier("B-FP", [True, False])
    with pytest.raises(AnalysisError, match="no finished run of task 'sst2'; expected one of movies"):
        compare(study_of(tmp_path), "sst2")


def test_one_document_gives_a_quality_but_no_comparison(maker, tmp_path: Path) -> None:
    for config in ("B-FP", "B-Q4"):
        maker.language_model(config, [30.0], [10])
    study = study_of(tmp_path)
    with pytest.raises(AnalysisError, match="share one example; expected two or more"):
        compare(study, "wiki")
    table = arms(study, "wiki")
    assert list(table["quality"]) == pytest.approx([math.exp(3)] * 2) and table["low"].isna().all()


def test_arms_have_wilson_and_student_intervals(maker, tmp_path: Path) -> None:
    for seed, wrong in enumerate((10, 14)):
        maker.classifier("B-FP", right(100, set(range(wrong))), seed=seed)
    maker.classifier("B-Q4", right(100, set(range(20))), seed=0)
    table = arms(study_of(tmp_path), "movies").set_index("config")
    assert list(table["quality"]) == pytest.approx([0.88, 0.80]) and list(table["seeds"]) == [2, 1]
    assert (table.loc["B-FP", "low"], table.loc["B-FP", "high"]) == pytest.approx(
        proportion_confint(88, 100, method="wilson")
    )
    interval = stats.ttest_1samp([0.90, 0.86], 0).confidence_interval(0.95)
    assert (table.loc["B-FP", "seed_low"], table.loc["B-FP", "seed_high"]) == pytest.approx(
        (interval.low, interval.high)
    )
    assert math.isnan(table.loc["B-Q4", "seed_low"])
    assert (table.loc["B-Q4", "zero"], table.loc["B-Q4", "model_mib"], table.loc["B-Q4", "peak_mib"]) == (
        0.5,
        10.0,
        100.0,
    )


def test_perplexity_of_several_seeds_is_that_of_the_mean_loss(maker, tmp_path: Path) -> None:
    for seed, nats in enumerate((20.0, 30.0)):
        maker.language_model("B-FP", [nats, nats + 1] * 3, [10] * 6, seed=seed)
    row = arms(study_of(tmp_path), "wiki").iloc[0]
    assert row["quality"] == pytest.approx(math.exp(51 / 20)) and row["low"] < row["quality"] < row["high"]
    assert row["seed_low"] < row["quality"] < row["seed_high"]


def test_one_collapsed_seed_gives_no_verdict(maker, tmp_path: Path) -> None:
    """Over examples the mean of three seeds is significantly worse, but another seed could reverse it."""
    for seed in range(3):
        maker.classifier("B-FP", right(1000, set(range(140))), seed=seed)
        maker.classifier("B-Q4", right(1000, set(range(500 if seed == 2 else 138))), seed=seed)
        maker.classifier("Joint-1", right(1000, set(range(200 + seed))), seed=seed)
    table = compare(study_of(tmp_path), "movies")
    collapsed, worse = row_of(table, "B-Q4", "B-FP"), row_of(table, "Joint-1", "B-FP")
    assert collapsed["p"] > 0.2 and collapsed["seed_low"] < 0 < collapsed["seed_high"]
    assert (collapsed["verdict"], collapsed["equivalent"]) == ("unresolved", False)
    assert worse["seed_high"] < 0 and worse["verdict"] == "worse"


def test_large_variation_over_seeds_prevents_equivalence(maker, new_maker, tmp_path: Path) -> None:
    """Equal means: arms with little variation over seeds are equivalent, with ±2 points they are not."""
    (tmp_path / "swings").mkdir()
    for current_maker, wrong in ((maker, (401, 402, 403)), (new_maker(tmp_path / "swings"), (322, 402, 482))):
        for seed in range(3):
            current_maker.classifier("B-FP", right(4000, set(range(400 + seed % 2))), seed=seed)
            current_maker.classifier("B-Q4", right(4000, set(range(wrong[seed]))), seed=seed)
    steady, varying = (
        row_of(compare(study_of(folder), "movies"), "B-Q4", "B-FP")
        for folder in (tmp_path, tmp_path / "swings")
    )
    assert steady["difference"] == pytest.approx(varying["difference"])
    assert (steady["verdict"], steady["equivalent"]) == ("as good as", True)
    assert varying["seed_high"] > 0.01 and (varying["verdict"], varying["equivalent"]) == (
        "unresolved",
        False,
    )


def test_equivalence_with_one_seed_has_a_separate_verdict(maker, tmp_path: Path) -> None:
    for config in ("B-FP", "B-Q4"):
        maker.classifier(config, right(4000, set(range(400))))
    row = row_of(compare(study_of(tmp_path), "movies"), "B-Q4", "B-FP")
    assert (row["verdict"], row["equivalent"]) == (ALIKE, True)


def test_pair_with_one_common_seed_gets_the_verdict_of_one_seed(maker, tmp_path: Path) -> None:
    for seed in range(2):
        maker.classifier("B-FP", right(1000, set(range(100 + seed))), seed=seed)
        maker.classifier("B-Q4", right(1000, set(range(160 + seed))), seed=seed)
    maker.classifier("Joint-1", right(1000, set(range(40))), seed=0)
    table = compare(study_of(tmp_path), "movies")
    assert row_of(table, "B-Q4", "B-FP")["verdict"] == "worse"
    assert (row_of(table, "Joint-1", "B-FP")["seeds"], row_of(table, "Joint-1", "B-FP")["verdict"]) == (
        1,
        DIFFERS,
    )
    assert ONE_SEED in table.attrs["notes"]
