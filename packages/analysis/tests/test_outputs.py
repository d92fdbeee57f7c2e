"""Folders that users give: files of others stay, and an earlier build until the new one is complete."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from bitrank_analysis.errors import AnalysisError
from bitrank_analysis.outputs import LIST, build_into
from bitrank_analysis.paper import write_paper
from bitrank_analysis.report import planners_report, write_report


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def built(folder: Path, files: dict[str, str], kind: str = "report", of_older: bool = False) -> None:
    with build_into(folder, kind, lambda _: of_older) as making:
        for name, text in files.items():
            (making / name).parent.mkdir(exist_ok=True)
            (making / name).write_text(text)


def test_a_build_replaces_the_files_of_the_earlier_one_alone(tmp_path: Path) -> None:
    built(tmp_path, {"a.md": "1", "figures/b.svg": "1", "tables/c.csv": "1"})
    (tmp_path / "figures/photo.png").write_text("mine")
    built(tmp_path, {"a.md": "2", "figures/d.svg": "2"})
    listed = json.loads((tmp_path / LIST).read_text())
    assert listed == {"report": ["a.md", "figures/d.svg"]}
    assert {name: text.decode() for name, text in contents(tmp_path).items() if name != LIST} == {
        "a.md": "2",
        "figures/d.svg": "2",
        "figures/photo.png": "mine",
    }
    assert not (tmp_path / "tables").exists()


def test_a_build_that_would_replace_a_file_of_somebody_else_changes_nothing(tmp_path: Path) -> None:
    built(tmp_path, {"a.md": "1"})
    (tmp_path / "b.md").write_text("mine")
    before = contents(tmp_path)
    with pytest.raises(AnalysisError, match=r"where b\.md is of something else \(1 such\) .*; move it away"):
        built(tmp_path, {"a.md": "2", "b.md": "2"})
    assert contents(tmp_path) == before


def test_a_build_that_fails_leaves_the_earlier_one(tmp_path: Path) -> None:
    built(tmp_path, {"a.md": "1", "figures/b.svg": "1"})
    before = contents(tmp_path)
    with pytest.raises(KeyboardInterrupt), build_into(tmp_path, "report", lambda _: False) as making:
        (making / "a.md").write_text("2")
        raise KeyboardInterrupt
    assert contents(tmp_path) == before


def test_a_list_that_names_files_outside_removes_none_of_them(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    (tmp_path / "out").mkdir()
    names = ["../mine.txt", str(tmp_path / "mine.txt")]
    (tmp_path / "out" / LIST).write_text(json.dumps({"report": names}))
    built(tmp_path / "out", {"a.md": "1"})
    assert (tmp_path / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize("write", [write_report, write_paper])
def test_figures_and_tables_of_the_user_survive(maker: Any, tmp_path: Path, write: Any) -> None:
    maker.classifier("B-FP", [True, False] * 10)
    out = tmp_path / "thesis"
    for name in ("figures/photo.png", "tables/data.csv", "notes.txt"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("mine")
    write(str(tmp_path), out)
    once = contents(out)
    write(str(tmp_path), out)
    assert set(contents(out)) == set(once)
    assert {name for name, text in contents(out).items() if text == b"mine"} == {
        "figures/photo.png",
        "tables/data.csv",
        "notes.txt",
    }


def test_a_paper_beside_the_tex_of_the_user_changes_nothing(maker: Any, tmp_path: Path) -> None:
    maker.classifier("B-FP", [True, False] * 10)
    out = tmp_path / "thesis"
    (out / "figures").mkdir(parents=True)
    (out / "figures/photo.png").write_text("mine")
    (out / "main.tex").write_bytes("größe".encode("latin-1"))
    before = contents(out)
    with pytest.raises(AnalysisError, match=r"main\.tex was not written by `bitrank paper`"):
        write_paper(str(tmp_path), out)
    assert contents(out) == before


@pytest.mark.parametrize("write", [write_report, write_paper])
def test_builds_of_versions_without_lists_are_replaced(maker: Any, tmp_path: Path, write: Any) -> None:
    maker.classifier("B-FP", [True, False] * 10)
    write(str(tmp_path), tmp_path / "out")
    names = set(contents(tmp_path / "out"))
    (tmp_path / "out" / LIST).unlink()
    (tmp_path / "out/figures/photo.png").write_text("mine")
    write(str(tmp_path), tmp_path / "out")
    assert set(contents(tmp_path / "out")) == names | {"figures/photo.png"}


def test_a_report_of_the_user_is_not_replaced(maker: Any, tmp_path: Path) -> None:
    maker.classifier("B-FP", [True, False] * 10)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/report.md").write_text("# My report\n")
    with pytest.raises(AnalysisError, match=r"report\.md is of something else"):
        write_report(str(tmp_path), tmp_path / "out")
    assert contents(tmp_path / "out") == {"report.md": b"# My report\n"}


def test_data_of_the_user_survive_the_report_of_a_study_on_them(maker: Any, tmp_path: Path) -> None:
    maker.classifier("B-FP", [True, False] * 10, task="reviews")
    costs = {"references": [], "plans": [{"config": "B-FP", "task": "reviews"}], "left_out": []}
    (tmp_path / "costs.json").write_text(json.dumps(costs))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/reviews.csv").write_text("text,label\ngood,1\n")
    arguments = (str(tmp_path), "bitrank-test", [tmp_path / "costs.json"])
    with pytest.raises(AnalysisError, match=r"reviews\.csv is of something else"):
        planners_report(*arguments, tmp_path / "mine")
    assert contents(tmp_path / "mine") == {"reviews.csv": b"text,label\ngood,1\n"}
    planners_report(*arguments, tmp_path / "out")
    written = contents(tmp_path / "out")
    (tmp_path / "out" / LIST).unlink()
    planners_report(*arguments, tmp_path / "out")
    assert contents(tmp_path / "out") == written, "an older version wrote no list"
    shutil.copytree(tmp_path / "out", tmp_path / "copy")
    planners_report(*arguments, tmp_path / "copy")
    assert contents(tmp_path / "copy") == written
