"""Planned arms in report, figures, tables and paper: against the budget's config and the best other arm."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from bitrank_analysis import load_study, open_store
from bitrank_analysis.evidence import Evidence, gather
from bitrank_analysis.figures.quality_bytes import quality_bytes
from bitrank_analysis.paper import write_paper
from bitrank_analysis.paper.claims import claims, planned_answer
from bitrank_analysis.planned import best_other, pair, planned_sentences
from bitrank_analysis.report.verdict import verdict
from bitrank_analysis.tables import tables
from studies import add_study

PLANNED = {"family": "planned"}


def right(count: int, n: int = 400) -> list[bool]:
    return [index < count for index in range(n)]


def figures(quality: float, mib: float, **more: float) -> dict[str, float]:
    return {
        "eval/acc": quality,
        "zero/acc": 0.5,
        "model/mib": mib,
        "lora/mib": 2.0,
        "mem/peak_mib": 900.0,
        "time/total_s": 80.0,
        **more,
    }


def add_arms(maker: Any, planned_right: int, seeds: int = 3, config: str = "Plan-Q4") -> None:
    """Arms of 400 examples: B-FP gets 360 of them right and B-Q4 300."""
    for seed in range(seeds):
        for name, count, mib in (("B-FP", 360, 38.0), ("B-Q4", 300, 18.0)):
            maker.classifier(name, right(count - seed), seed=seed, metrics=figures(count / 400, mib))
        metrics = figures(planned_right / 400, 17.95, **{"time/plan_s": 40.0})
        maker.classifier(config, right(planned_right - seed), seed=seed, metrics=metrics, tags=PLANNED)


def evidence_in(folder: Path) -> Evidence:
    return gather(load_study(open_store(str(folder))), "movies")


@pytest.mark.parametrize(("count", "word"), [(340, "better"), (260, "worse")])
def test_sentence_names_verdict_bytes_time_and_best_other_arm(
    maker: Any, tmp_path: Path, count: int, word: str
) -> None:
    add_arms(maker, count)
    (sentence,) = planned_sentences(evidence_in(tmp_path))
    assert sentence.startswith(f"On movies, Plan-Q4 (planned in 40 s; a run takes 80 s) is {word} than B-Q4 ")
    assert "in equal stored bytes); it is worse than B-FP (−" in sentence
    assert "in 50 % fewer stored bytes), the best other arm." in sentence


def test_one_seed_gives_neither_better_nor_worse(maker: Any, tmp_path: Path) -> None:
    add_arms(maker, 340, seeds=1)
    (sentence,) = planned_sentences(evidence_in(tmp_path))
    assert "differs from B-Q4 on these examples (one seed)" in sentence
    assert "better" not in sentence and "worse" not in sentence


def test_best_other_arm_that_is_the_reference_is_named_once(maker: Any, tmp_path: Path) -> None:
    for seed in range(2):
        maker.classifier("B-Q4", right(300 - seed), seed=seed)
        maker.classifier("Plan-Q4", right(340 - seed), seed=seed, tags=PLANNED)
    (sentence,) = planned_sentences(evidence_in(tmp_path))
    assert sentence.count(" B-Q4") == 1
    assert sentence.endswith(", the best other arm.")


def test_reversed_pair_has_the_opposite_difference_and_verdict(maker: Any, tmp_path: Path) -> None:
    add_arms(maker, 340)
    evidence = evidence_in(tmp_path)
    forward, back = pair(evidence, "Plan-Q4", "B-Q4"), pair(evidence, "B-Q4", "Plan-Q4")
    assert (forward["verdict"], back["verdict"]) == ("better", "worse")
    assert back["difference"] == -forward["difference"]
    assert (back["low"], back["high"]) == (-forward["high"], -forward["low"])
    assert pair(evidence, "Plan-Q4", "Joint-9") is None


def test_every_arm_is_compared_with_a_planned_arm(maker: Any, tmp_path: Path) -> None:
    add_arms(maker, 340, config="Plan-3.5")
    maker.classifier("Joint-2", right(350), seed=0, metrics=figures(0.875, 24.0))
    evidence = evidence_in(tmp_path)
    assert evidence.planned == ["Plan-3.5"] and best_other(evidence, "Plan-3.5") == "B-FP"
    rows = evidence.comparisons
    with_planned = rows[(rows["candidate"] == "Plan-3.5") | (rows["baseline"] == "Plan-3.5")]
    assert len(with_planned) == 3 and with_planned["p_holm"].notna().all()


def test_studies_without_a_planned_arm_keep_their_family_of_tests(maker: Any, tmp_path: Path) -> None:
    add_study(maker, tasks=("movies",), n=60)
    evidence = evidence_in(tmp_path)
    assert evidence.planned == [] and planned_sentences(evidence) == []
    assert set(evidence.comparisons["baseline"]) == {"B-FP", "B-Q4"}


def test_report_begins_with_the_planned_arm(maker: Any, tmp_path: Path) -> None:
    add_arms(maker, 340)
    lines = verdict([evidence_in(tmp_path)])
    assert lines[0].startswith("On movies, Plan-Q4") and lines[1].startswith("movies, against B-FP:")


def test_figure_marks_and_table_lists_the_planned_arm_last(maker: Any, tmp_path: Path) -> None:
    add_arms(maker, 340)
    evidence = evidence_in(tmp_path)
    figure = quality_bytes(evidence)
    drawn = figure.chart.to_dict()["layer"]
    rings = [layer for layer in drawn if layer["mark"].get("filled") is False]
    assert len(rings) == 1 and "a ring marks the planned arm" in figure.note
    arms = next(table for table in tables(evidence) if table.name == "arms-movies")
    assert list(arms.shown["Arm"]) == ["B-FP", "B-Q4", "Plan-Q4"]
    assert list(arms.shown["Plan s"]) == ["–", "–", "40"]


def test_figure_joins_planned_arms_of_several_budgets(maker: Any, tmp_path: Path) -> None:
    add_arms(maker, 340, config="Plan-3")
    for seed in range(2):
        maker.classifier("Plan-4", right(350 - seed), seed=seed, tags=PLANNED, metrics=figures(0.875, 24.0))
    figure = quality_bytes(evidence_in(tmp_path))
    lines = [layer for layer in figure.chart.to_dict()["layer"] if layer["mark"]["type"] == "line"]
    assert len(lines) == 2 and "the solid line joins the planned arms" in figure.note


def test_paper_gets_values_and_claims_of_the_planned_arm(maker: Any, tmp_path: Path) -> None:
    add_arms(maker, 340)
    evidence = evidence_in(tmp_path)
    assert claims(evidence)[0] == planned_answer([evidence])[0]
    folder = write_paper(str(tmp_path), tmp_path / "out")
    macros = (folder / "macros.tex").read_text()
    found = dict(re.findall(r"\\bitrank@def\{(.*?)\}\{(.*)\}\n", macros))
    place = "movies/Plan-Q4"
    assert (found[f"{place}/plan_s"], found[f"{place}/plan_share"]) == ("40", "50")
    assert found[f"{place}/stored_mib"] == "19.9" and f"{place}/quality" in found
    assert found[f"{place}/against/B-Q4/verdict"] == "better"
    assert found[f"{place}/against/B-FP/verdict"] == "worse"
    assert (found[f"{place}/best-other"], found[f"{place}/against/best-other/verdict"]) == ("B-FP", "worse")
    answer = (folder / "answer.tex").read_text()
    assert "Plan-Q4 is " in answer and "planned in" not in answer, "seconds are in the table"
    assert "Plan s" in (folder / "table-arms.tex").read_text()
