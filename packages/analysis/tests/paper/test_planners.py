"""A study of planners in the paper: exact cells of its table, its figure, its sentences, and refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from bitrank_analysis.errors import AnalysisError
from bitrank_analysis.paper import write_paper
from bitrank_analysis.paper.planners import planners_sentences, planners_table, read_planners
from studies import add_study

MIB = 2**20


def study(folder: Path, task: str = "articles") -> Path:
    """The results of two arms and their reference at one budget, and of an arm without a budget."""
    shared = {"higher_is_better": False, "zero": 50.0, "seeds": 3}
    compared = {"baseline": "exact-3bits", "metric": "ppl"}
    rows: list[dict[str, Any]] = [
        {"config": "exact-3bits", "budget": 4 * MIB, "stored_bytes": 4 * MIB, "quality": 30.0},
        {
            "config": "uniform-3bits",
            "budget": 4 * MIB,
            "stored_bytes": 3 * MIB,
            "quality": 33.0,
            "difference": 0.09531,
            "low": 0.04879,
            "high": 0.13976,
            "p_holm": 0.0004,
            "verdict": "worse",
            **compared,
        },
        {"config": "B-FP", "budget": None, "stored_bytes": 9 * MIB, "quality": 20.0},
    ]
    folder.mkdir(parents=True, exist_ok=True)
    pd.DataFrame([{**shared, **row} for row in rows]).to_csv(folder / f"{task}.csv", index=False)
    pd.DataFrame([{"claim": "another file"}]).to_csv(folder / f"published-{task}.csv", index=False)
    return folder


def test_table_has_the_arms_of_each_budget_with_the_reference_first(tmp_path: Path) -> None:
    lines = planners_table(read_planners([study(tmp_path)])).splitlines()
    cells = [line for line in lines if "3bits" in line]
    assert cells == [
        r"exact-3bits & 30.00 & 50.00 & 4.0 &  &  &  & reference \\",
        r"uniform-3bits & 33.00 & 50.00 & 3.0 & +10.0 & +5.0 to +15.0 & 0.0004 & worse \\",
    ]
    assert not any("B-FP" in line for line in lines), "an arm at its own bytes"
    assert any("articles: 4.0~MiB, difference in" in line for line in lines)


def test_an_arm_without_its_reference_is_not_called_one(tmp_path: Path) -> None:
    path = study(tmp_path) / "articles.csv"
    frame = pd.read_csv(path)
    lone = frame.iloc[[0]].assign(config="greedy-2bits", budget=2 * MIB)
    pd.concat([frame, lone]).to_csv(path, index=False)
    (row,) = [line for line in planners_table(read_planners([tmp_path])).splitlines() if "greedy" in line]
    assert row.endswith(r"& not compared \\")


def test_sentence_says_what_the_reference_is_better_than_by_how_much_and_what_it_equals(
    tmp_path: Path,
) -> None:
    frames = dict(read_planners([study(tmp_path)]))
    text = "On articles within 4.0 MiB, exact is better than uniform (+10.0)"
    unit = " (differences in % of perplexity)."
    assert planners_sentences(frames) == [text + unit]
    others = frames["articles"].iloc[[1, 1]].assign(config=["hand-made-3bits", "bits-only-3bits"])
    frames["articles"] = pd.concat([frames["articles"], others.assign(verdict="unresolved")])
    assert planners_sentences(frames) == [text + "; shows no difference from hand-made and bits-only" + unit]


def test_paper_gets_table_figure_and_sentences_only_with_a_study(maker: Any, tmp_path: Path) -> None:
    maker.classifier("B-FP", [True] * 60)
    maker.classifier("B-Q4", [True] * 30 + [False] * 30)
    plain = write_paper(str(maker.folder), tmp_path / "plain")
    assert not list(plain.rglob("*planners*"))
    made = write_paper(str(maker.folder), tmp_path / "made", planners=[study(tmp_path / "study")])
    assert {path.name for path in made.rglob("*planners*")} == {
        "table-planners.tex",
        "planners.tex",
        "figure-planners.tex",
        "planners-articles.pdf",
    }
    assert "generated/figures/planners-articles.pdf" in (made / "figure-planners.tex").read_text()
    assert "has/table-planners" in (made / "macros.tex").read_text()


def test_folder_without_a_study_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(AnalysisError, match="expected the results of a study of planners in"):
            read_planners([folder])


def test_two_studies_of_one_task_are_refused(tmp_path: Path) -> None:
    with pytest.raises(AnalysisError, match="articles is a task of two studies"):
        read_planners([study(tmp_path / "one"), study(tmp_path / "two")])


def test_sentence_keeps_the_names_of_arms_with_hyphens(tmp_path: Path) -> None:
    frames = dict(read_planners([study(tmp_path)]))
    names = {"exact-": "Plan-Q4-", "uniform-": "B-Q4-"}
    renamed = frames["articles"].replace({"config": names, "baseline": names}, regex=True)
    (sentence,) = planners_sentences({"articles": renamed})
    assert "Plan-Q4 is better than B-Q4 (+10.0)" in sentence


def test_study_without_a_comparison_is_refused_before_the_folder_is_emptied(
    maker: Any, tmp_path: Path
) -> None:
    add_study(maker, arms=("B-FP", "B-Q4"), tasks=("movies",))
    frame = pd.read_csv(study(tmp_path / "study") / "articles.csv")
    frame[frame["baseline"].isna()].to_csv(tmp_path / "study/articles.csv", index=False)
    out = write_paper(str(tmp_path), tmp_path / "paper")
    before = sorted(out.rglob("*"))
    with pytest.raises(AnalysisError, match="an arm was compared at equal bytes"):
        write_paper(str(tmp_path), out, planners=[tmp_path / "study"])
    assert sorted(out.rglob("*")) == before
