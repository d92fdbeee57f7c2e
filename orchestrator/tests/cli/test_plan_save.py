"""``bitrank plan --save``: refused before a measurement where it cannot be written; names of the files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from bitrank.cli.main import main
from bitrank.cli.plan_page import page_path
from bitrank.cli.plan_save import check_plan_file
from bitrank.errors import UserError
from bitrank.spec.make_spec import name_of_plan
from bitrank.spec.plan_file import save_plan

PLAN = ("plan", "--profile", "smoke", "--task", "toy_sentences", "--ranks", "2,4,8")


@pytest.mark.parametrize(
    ("save", "message"),
    [
        (".", "cannot write the plan to .: it is a folder; give a file with --save, such as plan.json"),
        ("none/plan.json", "cannot write the plan to none/plan.json: No such file or directory"),
        ("B-FP.json", "B-FP.json is called as the config B-FP"),
    ],
)
def test_a_plan_that_cannot_be_saved_or_trained_is_refused_before_anything_is_measured(
    capsys: Any, place: Path, monkeypatch: pytest.MonkeyPatch, save: str, message: str
) -> None:
    from bitrank.planning import curve, make_plan

    for module in (make_plan, curve):
        monkeypatch.setattr(module, "measure", lambda *_: pytest.fail("measured"))
    assert main([*PLAN, "--budget", "9bits", "--save", save]) == 2
    assert message in capsys.readouterr().err
    (place / "taken").write_text("")
    assert main([*PLAN, "--budgets", "9bits", "--save", "taken"]) == 2
    assert "cannot write plans to taken: File exists" in capsys.readouterr().err
    assert [path.name for path in place.iterdir()] == ["taken"]


@pytest.mark.parametrize(
    ("taken", "content"),
    [
        ("thesis.html", "<p>mine</p>"),
        ("thesis.json", '{"model_type": "bert"}'),
        ("thesis.json", "text,label"),
    ],
)
def test_a_file_of_something_else_is_not_replaced_by_a_plan(
    capsys: Any, place: Path, taken: str, content: str
) -> None:
    (place / taken).write_text(content)
    assert main([*PLAN, "--budget", "9bits", "--save", "thesis.json"]) == 2
    assert f"got {taken}, which is something else and would be replaced" in capsys.readouterr().err
    assert [(path.name, path.read_text()) for path in place.iterdir()] == [(taken, content)]


def test_the_longest_name_that_can_be_written_is_taken(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.getpid", lambda: 2**22 - 1)
    longest = place / f"{'p' * 241}.json"
    check_plan_file(longest)
    save_plan({"precision": {}, "ranks": {}}, longest)
    assert [path.name for path in place.iterdir()] == [longest.name]
    for name in (f"p{longest.name}", "p" * 242):  # the page of the second one ends in .html
        with pytest.raises(UserError, match="File name too long"):
            check_plan_file(place / name)


def test_a_figure_of_something_else_is_not_replaced_by_a_curve(capsys: Any, place: Path) -> None:
    (place / "curve.png").write_text("mine")
    assert main([*PLAN, "--budgets", "9bits", "--save", "."]) == 2
    assert "expected a folder without curve.png" in capsys.readouterr().err
    assert [(path.name, path.read_text()) for path in place.iterdir()] == [("curve.png", "mine")]


def test_a_file_of_something_else_is_not_replaced_by_the_plan_of_a_budget(capsys: Any, place: Path) -> None:
    (place / "plan-B-Q4.json").write_text('{"mine": 1}')
    assert main([*PLAN, "--budgets", "9bits,=B-Q4", "--save", "."]) == 2
    assert "got plan-B-Q4.json, which is something else and would be replaced" in capsys.readouterr().err
    assert [(path.name, path.read_text()) for path in place.iterdir()] == [("plan-B-Q4.json", '{"mine": 1}')]


def test_plans_of_an_earlier_curve_are_replaced(place: Path) -> None:
    for budget in ("9bits", "12bits"):
        assert main([*PLAN, "--budgets", budget, "--save", "curve"]) == 0
    (point,) = json.loads((place / "curve/curve.json").read_text())["points"]
    assert point["budget"] == "12bits"


def test_an_earlier_plan_and_its_page_are_replaced(place: Path) -> None:
    for budget in ("9bits", "12bits"):
        assert main([*PLAN, "--budget", budget, "--save", "plan.json"]) == 0
    assert json.loads((place / "plan.json").read_text())["planner"]
    assert {path.name for path in place.iterdir()} == {"plan.json", "plan.html"}


def test_the_list_of_matrices_is_that_of_one_plan(capsys: Any, place: Path) -> None:
    assert main([*PLAN, "--budgets", "9bits,12bits", "--matrices"]) == 2
    assert "--matrices lists the matrices of one plan: give --budget" in capsys.readouterr().err


def test_budgets_in_names_without_an_ending_stay_apart(capsys: Any, place: Path) -> None:
    """Everything after the last dot of ``plan-9.5bits`` is part of the budget, and no ending of a file."""
    for budget in ("9.5bits", "9.25bits"):
        assert main([*PLAN, "--budget", budget, "--save", f"plan-{budget}"]) == 0
    files = {f"plan-{budget}{ending}" for budget in ("9.5bits", "9.25bits") for ending in ("", ".html")}
    assert {path.name for path in place.iterdir()} == files
    assert "plan-9.5bits.html" in capsys.readouterr().out
    assert "<h2>plan-9.5bits" in (place / "plan-9.5bits.html").read_text()
    assert json.loads((place / "plan-9.5bits").read_text())["bytes"] > 0


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("plan-3.5bits", "plan-3.5bits"),
        ("plan-3.25bits", "plan-3.25bits"),
        ("plan-3.5bits.json", "plan-3.5bits"),
        ("plan.JSON", "plan"),
        ("plan.html", "plan.html"),
    ],
)
def test_only_json_is_an_ending_of_a_plan(file: str, name: str) -> None:
    assert name_of_plan(Path("folder") / file) == name
    assert page_path(Path("folder") / file) == Path("folder") / f"{name}.html"
