"""Findings on published claims: exact answers on small results, and nothing for arms that were not run."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from bitrank_analysis import load_study, open_store
from bitrank_analysis.evidence import gather
from bitrank_analysis.published import (
    CLAIMS,
    NOT_DECIDED,
    NOT_SUPPORTED,
    NOT_TESTED,
    SUPPORTED,
    Setting,
    findings_on_claims,
    result_text,
)
from bitrank_analysis.statistics import arms
from bitrank_analysis.statistics.examples import load_arms
from bitrank_analysis.tables import tables

N = 400


def add(maker: Any, config: str, right: int, seeds: int = 3, bits: float = 4.5, **options: Any) -> None:
    """Runs of ``config`` that get the first ``right`` of 400 examples right, one fewer with each seed."""
    figures = {"zero/acc": 0.5, "model/mib": 10.0, "lora/mib": 0.5, "model/bits": bits, "mem/peak_mib": 100.0}
    figures |= options.pop("figures", {})
    for seed in range(seeds):
        count = right - seed
        metrics = {"eval/acc": count / N, **figures}
        maker.classifier(config, [index < count for index in range(N)], seed=seed, metrics=metrics, **options)


def finding(folder: Path, key: str, kind: str = "classification") -> pd.DataFrame:
    study = load_study(open_store(str(folder)))
    setting = Setting(kind, arms(study, "movies"))
    found = findings_on_claims(load_arms(study, "movies"), setting)
    return found[found["claim"] == CLAIMS[key].text].reset_index(drop=True)


@pytest.mark.parametrize(
    ("quantized", "expected", "reason"),
    [
        (360, SUPPORTED, "at least 99 % is kept"),
        (300, NOT_SUPPORTED, "less than 99 % is kept"),
        (357, NOT_DECIDED, "the corrected interval contains 99 %"),
    ],
)
def test_share_of_the_16_bit_score_decides(
    maker: Any, tmp_path: Path, quantized: int, expected: str, reason: str
) -> None:
    add(maker, "B-FP", 360, bits=16.0)
    add(maker, "B-Q4", quantized)
    (row,) = finding(tmp_path, "four-bits").itertuples()
    assert (row.finding, row.reason) == (expected, reason)
    assert row.value == pytest.approx((quantized - 1) / 359), "means over seeds 0, 1, 2"
    assert row.low < row.value < row.high


@pytest.mark.parametrize(
    ("five_rounds", "expected"), [(300, SUPPORTED), (340, NOT_SUPPORTED), (260, SUPPORTED)]
)
def test_no_gain_is_supported_by_equal_and_by_worse_quality(
    maker: Any, tmp_path: Path, five_rounds: int, expected: str
) -> None:
    add(maker, "LoftQ-Q4", 300)
    add(maker, "LoftQ-5-Q4", five_rounds)
    (row,) = finding(tmp_path, "loftq-rounds").itertuples()
    assert row.finding == expected and row.value == pytest.approx((five_rounds - 300) / N)
    word = {300: "as good as", 340: "better than", 260: "worse than"}[five_rounds]
    assert row.reason == f"it is {word} LoftQ-Q4"


def test_no_gain_is_supported_by_a_gain_below_the_margin(maker: Any, tmp_path: Path) -> None:
    for seed in range(3):
        for config, right in (("LoftQ-Q4", 9_000), ("LoftQ-5-Q4", 9_040)):
            metrics = {"eval/acc": right / 10_000, "zero/acc": 0.5, "model/mib": 10.0, "lora/mib": 0.5}
            maker.classifier(config, [n < right for n in range(10_000)], seed=seed, metrics=metrics)
    (row,) = finding(tmp_path, "loftq-rounds").itertuples()
    assert (row.finding, row.reason) == (SUPPORTED, "it is better than LoftQ-Q4 by less than the margin")


def test_one_seed_decides_nothing(maker: Any, tmp_path: Path) -> None:
    add(maker, "B-FP", 360, seeds=1, bits=16.0)
    add(maker, "B-Q4", 300, seeds=1)
    add(maker, "qr-adaptor", 360, seeds=1)
    (row,) = finding(tmp_path, "four-bits").itertuples()
    assert (row.finding, row.reason) == (NOT_DECIDED, "one seed") and row.value == pytest.approx(300 / 360)
    (row,) = finding(tmp_path, "qr-adaptor").itertuples()
    assert (row.finding, row.reason) == (NOT_DECIDED, "differs on these examples (one seed)")


def test_arms_are_compared_at_the_same_budget_and_under_the_claims_conditions(
    maker: Any, tmp_path: Path
) -> None:
    for budget, bits in (("3.5bits", 3.1), ("B-Q4", 4.6)):
        add(maker, f"B-Q4-{budget}", 300, bits=bits)
        add(maker, f"QA-LoRA-Q4-{budget}", 340, bits=bits)
    add(maker, "B-FP", 360, bits=16.0)
    (row,) = finding(tmp_path, "qa-lora").itertuples()
    assert (row.candidate, row.baseline) == ("QA-LoRA-Q4-3.5bits", "B-Q4-3.5bits")
    assert (row.finding, row.value) == (SUPPORTED, pytest.approx(0.1))
    (row,) = finding(tmp_path, "four-bits").itertuples()
    assert (row.candidate, row.baseline) == ("B-Q4-B-Q4", "B-FP"), "the arm of 3.1 bits is not one of 4"


@pytest.mark.parametrize(("mib", "expected"), [(9.5, NOT_SUPPORTED), (7.5, NOT_TESTED)])
def test_a_loss_against_an_arm_of_more_bytes_decides_no_claim(
    maker: Any, tmp_path: Path, mib: float, expected: str
) -> None:
    add(maker, "B-Q4-3.5bits", 340, bits=3.1)
    add(maker, "L4Q-Q4-3.5bits", 300, bits=3.0, figures={"model/mib": mib})
    (row,) = finding(tmp_path, "l4q").itertuples()
    assert row.finding == expected
    if expected == NOT_TESTED:
        assert row.reason == "L4Q-Q4-3.5bits stores 8.00 MiB, B-Q4-3.5bits 10.50: not equal bytes"


def test_what_a_search_finds_is_compared_with_the_uniform_plan_too(maker: Any, tmp_path: Path) -> None:
    for name, right in (("qr-adaptor-B-Q4", 340), ("B-Q4-B-Q4", 300), ("uniform-B-Q4", 340)):
        add(maker, name, right)
    first, second = finding(tmp_path, "qr-adaptor").itertuples()
    assert (first.baseline, first.finding) == ("B-Q4-B-Q4", SUPPORTED)
    assert (second.baseline, second.finding) == ("uniform-B-Q4", NOT_SUPPORTED)


def test_claim_about_a_small_trained_share_needs_its_kind_of_task_and_share(
    maker: Any, tmp_path: Path
) -> None:
    for name, right in (("B-Ada", 340), ("B-FP", 300)):
        add(maker, name, right, bits=16.0, figures={"lora/percent": 0.3})
    (row,) = finding(tmp_path, "adalora").itertuples()
    assert (row.finding, row.reason) == (NOT_TESTED, "needs a task of the kind question-answering")


@pytest.mark.parametrize(("left", "expected"), [(500, SUPPORTED), (700, NOT_TESTED)])
def test_parameters_that_pruning_leaves_are_the_trained_share(
    maker: Any, tmp_path: Path, left: int, expected: str
) -> None:
    """A thousand parameters are 0.16 %: the half of them is below 0.1 %, seven tenths are not."""
    for name, right, count, kept in (("B-Ada", 340, 1000, left), ("B-FP", 300, 500, 500)):
        figures = {"lora/percent": 0.16 * count / 1000, "lora/params": count, "lora/mib": 2 * kept / 2**20}
        add(maker, name, right, bits=16.0, figures=figures)
    (row,) = finding(tmp_path, "adalora", "question-answering").itertuples()
    assert row.finding == expected
    if expected == NOT_TESTED:
        assert row.reason == "trains 0.11 % and 0.08 %, not below 0.1 %"


def test_every_claim_without_its_arms_is_named_as_not_tested(maker: Any, tmp_path: Path) -> None:
    add(maker, "B-FP", 360, bits=16.0)
    evidence = gather(load_study(open_store(str(tmp_path))), "movies")
    assert set(evidence.published["finding"]) == {NOT_TESTED}
    assert list(evidence.published["claim"]) == [claim.text for claim in CLAIMS.values()]
    (table,) = [table for table in tables(evidence) if table.name == "published-movies"]
    shown = table.shown.set_index("Claim")
    assert shown.loc[CLAIMS["l4q"].text, "Finding"] == "not tested here: no finished run of B-Q4, L4Q-Q4"
    assert set(shown["Result"]) == {"–"} == set(shown["Compared"])


def test_result_states_the_share_by_the_direction_of_the_metric() -> None:
    values = {"finding": SUPPORTED, "statistic": "share", "value": 0.886, "low": 0.8821, "high": 0.89}
    row = SimpleNamespace(candidate="B-Q4", baseline="B-FP", **values)
    assert result_text(row, "acc") == "88.6 % [88.2, 89.0] of accuracy kept"
    assert result_text(row, "ppl") == "88.6 % [88.2, 89.0], perplexity of B-FP over that of B-Q4"


def test_sources_are_in_the_bibliography_of_the_paper() -> None:
    bibliography = (Path(__file__).parents[3] / "paper/references.bib").read_text(encoding="utf-8")
    for claim in CLAIMS.values():
        assert f"{{{claim.citation}," in bibliography
