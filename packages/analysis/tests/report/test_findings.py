"""Findings state what the report states, and name the runs that they are about."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from bitrank_analysis import load_study, open_store
from bitrank_analysis.report import Finding, collect, findings
from bitrank_analysis.report.findings import dominated
from bitrank_analysis.statistics.verdicts import BETTER, DIFFERS, WORSE
from studies import ARMS, add_study


def found(folder: Path) -> dict[tuple[str, str], Finding]:
    study = load_study(open_store(str(folder)))
    return {(one.kind, one.title): one for one in findings(study, collect(study))}


def test_each_task_has_its_verdicts_and_the_runs_behind_them(maker: Any, tmp_path: Path) -> None:
    run_ids = add_study(maker, arms=("B-FP", "B-Q4"), seeds=2)
    report = collect(load_study(open_store(str(tmp_path))))
    by_name = found(tmp_path)
    verdicts = by_name["verdict", "Verdicts on wiki"]
    assert next(line for line in report.verdict if line.startswith("wiki,")) in verdicts.text
    assert "movies" not in verdicts.text and "| " in verdicts.text
    assert verdicts.configs == ("B-FP", "B-Q4") and len(verdicts.links) == len(verdicts.specs) == 4
    assert verdicts.links[0].rpartition("/")[2] in run_ids


def test_a_planned_arm_has_its_formats_and_ranks(maker: Any, tmp_path: Path) -> None:
    add_study(maker, arms=("B-FP", "Plan-Q4"), tasks=("wiki",))
    plan = found(tmp_path)["plan", "Plan of Plan-Q4 for wiki"]
    assert "× int8" in plan.text and "× 4 (matrices × rank)" in plan.text and plan.configs == ("Plan-Q4",)


def test_an_arm_that_is_worse_in_more_bytes_is_a_surprise(
    maker: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ARMS, "Plan-low", ("int8", (4,) * 6, False, 0.87, -0.1))
    add_study(maker, arms=("B-FP", "B-Q4", "Plan-low"), tasks=("wiki",), seeds=2)
    (surprise,) = (one for (kind, _), one in found(tmp_path).items() if kind == "surprise")
    assert surprise.text.startswith("On wiki, Plan-low is better than B-FP by ")
    assert "fewer stored bytes" in surprise.text
    assert "B-Q4" not in surprise.text, "a better arm in more bytes is no surprise"


@pytest.mark.parametrize(
    ("verdict", "candidate", "baseline", "difference", "ending"),
    [
        (BETTER, "small", "large", 0.05, "."),
        (WORSE, "large", "small", -0.05, "."),
        (DIFFERS, "large", "small", -0.05, " (one seed)."),
    ],
)
def test_a_surprise_does_not_depend_on_which_arm_is_the_baseline(
    verdict: str, candidate: str, baseline: str, difference: float, ending: str
) -> None:
    arms = pd.DataFrame({"config": ["large", "small"], "stored_mib": [400.0, 100.0]})
    row = {"verdict": verdict, "candidate": candidate, "baseline": baseline, "difference": difference}
    task: Any = SimpleNamespace(
        task="sst2", metric="acc", higher_is_better=True, arms=arms, comparisons=pd.DataFrame([row])
    )
    expected = "On sst2, small is better than large by 5.00 points of accuracy in 75 % fewer stored bytes"
    assert dominated(task) == [f"{expected}{ending}"]


def test_a_failed_run_is_a_finding_and_an_absent_one_is_not(maker: Any, tmp_path: Path) -> None:
    add_study(maker, arms=("B-FP",), tasks=("wiki",))
    tags = {"failure": "out of memory", "spec_id": "0a1b2c3d4e5f"}
    maker.run("B-Q4", "wiki", 0, tags=tags, status="FAILED")
    maker.run("B-FP", "wiki", 1, status="FAILED", tags={"failure": "disk is full"})
    failures = [one for (kind, _), one in found(tmp_path).items() if kind == "failure"]
    assert {one.configs for one in failures} == {("B-Q4",), ("B-FP",)}
    killed = next(one for one in failures if one.configs == ("B-Q4",))
    assert killed.text.endswith("failed: out of memory") and killed.specs == ("0a1b2c3d4e5f",)
