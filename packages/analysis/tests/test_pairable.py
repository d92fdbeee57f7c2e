"""A store with runs that cannot be paired: report, paper and the report of a study name those left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from bitrank_analysis import load_study, open_store
from bitrank_analysis.pairable import with_pairable_runs
from bitrank_analysis.paper import write_paper
from bitrank_analysis.report import write_report
from bitrank_analysis.report.planners import planners_report
from bitrank_analysis.study import Study

HOW = (
    "To compare such runs, keep all that have these settings, and their references, in a store of their own "
    "(--store FOLDER)."
)
LEFT_OUT = "Runs left out because they cannot be paired with the other runs of their task: "


def pairable(folder: Path) -> Study:
    return with_pairable_runs(load_study(open_store(str(folder))))


def of_length(maker: Any, config: str, length: int, **options: Any) -> str:
    """A run whose test text has fewer windows the longer they are."""
    count = 1024 // length
    params = {"model": "tiny", "max_length": str(length), "steps": "20"}
    run: str = maker.language_model(
        config, [float(length)] * count, [length] * count, params=params, **options
    )
    return run


def of_model(maker: Any, config: str, model: str) -> str:
    run: str = maker.classifier(
        config, [True] * 8 + [False] * 2, tags={"model": model}, params={"model": model}
    )
    return run


def test_a_report_leaves_out_a_run_of_another_length_and_names_the_length(maker: Any, tmp_path: Path) -> None:
    for config in ("B-FP", "B-Q4"):
        of_length(maker, config, 128)
    of_length(maker, "Joint-1", 256)
    page = write_report(str(tmp_path), tmp_path / "out")
    text = (page.parent / "report.md").read_text(encoding="utf-8")
    assert f"{LEFT_OUT}Joint-1 wiki s0, with max_length=256. {HOW}" in text
    assert "Joint-1 on wiki, seed 0: finished, but evaluated with max_length=256" in text


def test_a_report_leaves_out_a_run_of_another_model_and_names_the_model(maker: Any, tmp_path: Path) -> None:
    for config in ("B-FP", "B-Q4"):
        of_model(maker, config, "minilm")
    of_model(maker, "Joint-1", "mpnet")
    page = write_report(str(tmp_path), tmp_path / "out")
    text = (page.parent / "report.md").read_text(encoding="utf-8")
    assert f"{LEFT_OUT}Joint-1 movies s0, with model=mpnet. {HOW}" in text


def test_a_paper_leaves_out_a_run_of_another_length(maker: Any, tmp_path: Path) -> None:
    for config in ("B-FP", "B-Q4"):
        of_length(maker, config, 128)
    of_length(maker, "Joint-1", 256)
    folder = write_paper(str(tmp_path), tmp_path / "out")
    remarks = (folder / "remarks.tex").read_text(encoding="utf-8")
    assert r"Joint-1 wiki s0, with max\_length=256." in remarks


def test_the_report_of_a_study_leaves_out_a_run_of_another_model(maker: Any, tmp_path: Path) -> None:
    for config in ("B-FP", "B-Q4"):
        of_model(maker, config, "minilm")
    of_model(maker, "Joint-1", "mpnet")
    of_model(maker, "an arm that the study did not plan", "mpnet")
    of_model(maker, "another of them", "mpnet")
    plans = [{"config": config, "task": "movies"} for config in ("B-FP", "B-Q4", "Joint-1")]
    costs = tmp_path / "planning.json"
    costs.write_text(json.dumps({"references": ["B-FP"], "plans": plans, "left_out": []}))
    text = planners_report(str(tmp_path), None, [costs], tmp_path / "out")
    assert f"{LEFT_OUT}Joint-1 movies s0, with model=mpnet. {HOW}" in text
    assert "- Joint-1, seed 0: finished, but evaluated with model=mpnet" in text


def test_of_two_equally_frequent_lengths_the_newest_is_kept(maker: Any, tmp_path: Path) -> None:
    of_length(maker, "plan chat", 128, seed=1)
    newest = of_length(maker, "plan chat", 256, seed=0)
    study = pairable(tmp_path)
    assert list(study.runs["run_id"]) == [newest]
    assert study.notes[-1] == f"{LEFT_OUT}plan chat wiki s1, with max_length=128. {HOW}"


def test_runs_that_differ_in_no_known_setting_are_said_to_have_other_examples(
    maker: Any, tmp_path: Path
) -> None:
    for config in ("A", "B"):
        maker.classifier(config, [True, False, True, False])
    maker.classifier("C", [True, False, True, False], ids=["a", "b", "c", "d"])
    assert pairable(tmp_path).notes == (f"{LEFT_OUT}C movies s0, on other examples. {HOW}",)


@pytest.mark.parametrize("key", ["max_length", "steps", "text_column"])
def test_runs_on_the_same_examples_are_all_kept_whatever_their_settings(
    maker: Any, tmp_path: Path, key: str
) -> None:
    for config, value in (("A", "128"), ("B", "128"), ("C", "256")):
        maker.classifier(config, [True, False, True, False], params={key: value})
    study = load_study(open_store(str(tmp_path)))
    assert with_pairable_runs(study) is study and len(study.runs) == 3
