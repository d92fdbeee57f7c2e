"""The report on complete and incomplete studies: its sentences, files and page."""

from __future__ import annotations

import json
import re
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pandas as pd
import pytest
from bitrank_analysis import AnalysisError, load_study, open_store
from bitrank_analysis.evidence import Evidence, gather
from bitrank_analysis.report import collect, write_report
from bitrank_analysis.report.facts import notice
from bitrank_analysis.report.page import page
from bitrank_analysis.report.side_by_side import disagreements, side_by_side
from bitrank_analysis.report.verdict import verdict
from bitrank_analysis.statistics.verdicts import ALIKE, DIFFERS, UNRESOLVED
from studies import add_study


def of(folder: Path, task: str) -> Evidence:
    return gather(load_study(open_store(str(folder))), task)


def test_complete_study_gives_page_text_figures_and_tables(maker: Any, tmp_path: Path) -> None:
    run_ids = add_study(maker, arms=("B-FP", "B-Ada"), seeds=2, n=60)
    path = write_report(str(tmp_path), tmp_path / "out", ui_url="http://ui.example:5000/")
    html, text = path.read_text(), (tmp_path / "out/report.md").read_text()
    for run_id in run_ids:
        assert f'href="http://ui.example:5000/#/experiments/1/runs/{run_id}"' in html
    specs = json.loads(re.search(r'id="specs">(.*?)</script>', html, re.DOTALL)[1])  # type: ignore[index]
    drawn = re.findall(r'data-chart="([^"]+)"', html)
    assert sorted(specs["charts"]) == sorted(drawn) and len(drawn) == 22
    assert drawn[0] == "quality-bytes-movies", "the figure at the top"
    assert html.index('data-chart="quality-bytes-movies"') < html.index("Paired differences")
    for name in drawn:
        assert all(
            (tmp_path / "out/figures" / f"{name}.{kind}").stat().st_size > 500
            for kind in ("svg", "pdf", "png", "json")
        )
    assert (tmp_path / "out/tables/comparisons-wiki.tex").read_text().startswith("\\begin{tabular}")
    assert (
        text.index("movies, against B-FP: ")
        < text.index("## movies")
        < text.index("## wiki")
        < text.index("## Runs")
    )
    assert "2.13.0" in html and "a machine" in html
    assert "Every cell of the grid" in html


def test_ids_of_the_page_are_unique_and_its_links_lead_to_files_of_any_task(
    maker: Any, tmp_path: Path
) -> None:
    tasks = ("specs", "runs", "50% #1?")
    add_study(maker, arms=("B-FP",), tasks=tasks, n=20)
    html = write_report(str(tmp_path), tmp_path / "out").read_text()
    ids = re.findall(r' id="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    links = set(re.findall(r' href="([^"]+)"', html))
    assert {link[1:] for link in links if link.startswith("#")} <= set(ids)
    files = [unquote(link) for link in links if link.startswith(("figures/", "tables/"))]
    assert {f"tables/arms-{task}.csv" for task in tasks} <= set(files)
    assert all((tmp_path / "out" / name).is_file() for name in files)
    assert not [link for link in links if link.startswith(("figures/", "tables/")) and set(link) & set("#? ")]


def test_files_of_an_earlier_report_are_removed(maker: Any, tmp_path: Path) -> None:
    maker.classifier("B-FP", [True, False] * 10)
    write_report(str(tmp_path), tmp_path / "out", "bitrank-test")
    old = list((tmp_path / "out").rglob("*-movies.*"))
    (tmp_path / "out/mine.txt").write_text("kept")
    maker.classifier("B-FP", [True, False] * 10, task="films", experiment="later")
    write_report(str(tmp_path), tmp_path / "out", "later")
    assert old and not any(path.exists() for path in old)
    assert (tmp_path / "out/mine.txt").read_text() == "kept"


def test_missing_and_failed_arms_are_listed(maker: Any, tmp_path: Path) -> None:
    add_study(maker, arms=("B-FP", "Own-mix"), tasks=("movies",))
    maker.run("B-Q4", task="movies", status="FAILED", tags={"failure": "out of <memory>"})
    report = collect(load_study(open_store(str(tmp_path))))
    assert report.not_run == ["B-Q4 on movies, seed 0: failed: out of <memory>"]
    assert report.verdict[0].startswith("movies, against B-FP: ") and "Own-mix" in report.verdict[0]
    assert report.verdict[1] == "movies, against B-Q4: no comparison, because B-Q4 has no finished run."
    html = page(report)
    assert "out of &lt;memory&gt;" in html and "out of <memory>" not in html


def test_single_arm_is_reported_without_comparison(maker: Any, tmp_path: Path) -> None:
    add_study(maker, arms=("B-FP",), tasks=("wiki",))
    report = collect(load_study(open_store(str(tmp_path))))
    expected = "wiki, against B-FP: no comparison, because no other arm has a finished run."
    assert report.verdict[0] == expected
    assert report.verdict[2].startswith("How sure: nothing was compared, and one seed was trained,")
    assert any("figure forest: expected two arms" in gap for gap in report.gaps)


def test_runs_with_only_predictions_give_a_report_with_gaps(maker: Any, tmp_path: Path) -> None:
    maker.classifier("B-FP", [True] * 30 + [False] * 10)
    maker.classifier("B-Q4", [True] * 12 + [False] * 28)
    report = collect(load_study(open_store(str(tmp_path))))
    assert report.verdict[0] == (
        "movies, against B-FP: B-Q4 differs on these examples (one seed; another may differ)."
    )
    assert not any(word in " ".join(report.verdict) for word in (" better", " worse", " as good"))
    drawn = {figure.name for figure in report.sections[0].figures}
    assert {"forest-movies", "quality-bytes-movies", "recovery-movies"} <= drawn
    assert not drawn & {
        "loss-movies",
        "memory-movies",
        "parameters-movies",
        "bits-map-movies",
        "rank-map-movies",
        "rank-layers-movies",
    }
    for name in ("loss", "memory", "parameters", "bits-map", "rank-map", "rank-layers"):
        assert any(gap.startswith(f"movies, figure {name}: expected ") for gap in report.gaps)
    assert "movies, figure memory: expected runs of movies with peak_mib" in page(report)


def test_study_without_finished_runs_raises(maker: Any, tmp_path: Path) -> None:
    maker.run("B-FP", task="movies", status="FAILED", tags={"failure": "no memory"})
    with pytest.raises(
        AnalysisError,
        match=r"expected a finished run in bitrank-test, got none "
        r"\(B-FP on movies, seed 0: failed: no memory\)",
    ):
        write_report(str(tmp_path), tmp_path / "out")


def test_unwritable_folder_raises(maker: Any, tmp_path: Path) -> None:
    add_study(maker, arms=("B-FP",), tasks=("wiki",))
    (tmp_path / "file").write_text("")
    with pytest.raises(AnalysisError, match="expected a folder to write the report to"):
        write_report(str(tmp_path), tmp_path / "file")


@pytest.fixture
def movies(maker: Any, tmp_path: Path) -> Evidence:
    add_study(maker, arms=("B-FP", "Joint-2", "Joint-3"), tasks=("movies",))
    return of(tmp_path, "movies")


def first_line(movies: Evidence, **rows: tuple[str, float]) -> str:
    """The first line if the arms have these verdicts and differences, with an interval of ± 1 point."""
    table = movies.comparisons.copy()
    for index, row in table.iterrows():
        result, difference = rows[row["candidate"].replace("-", "_")]
        table.loc[index, ["difference", "low", "high"]] = [difference, difference - 0.01, difference + 0.01]
        table.loc[index, "verdict"] = result
    return verdict([replace(movies, comparisons=table)])[0]


def test_first_line_follows_the_verdicts(movies: Evidence) -> None:
    """Bytes are those of model and adapters: Joint-2 has larger adapters than Joint-3, in equal formats."""
    two, three = (f"in {saved} % fewer stored bytes" for saved in (39, 40))
    assert first_line(movies, Joint_2=("better", 0.02), Joint_3=("worse", -0.03)) == (
        f"movies, against B-FP: Joint-2 is better {two}; Joint-3 is worse {three}."
    )
    assert first_line(movies, Joint_2=("as good as", 0.001), Joint_3=("unresolved", 0.004)) == (
        f"movies, against B-FP: Joint-2 is as good within 1 point of accuracy {two}; "
        f"Joint-3 is unresolved {three}."
    )
    assert first_line(movies, Joint_2=("worse", -0.0001), Joint_3=("worse", -0.04)) == (
        "movies, against B-FP: Joint-2 and Joint-3 are worse."
    )


def test_verdicts_of_one_seed_have_their_own_wording(movies: Evidence) -> None:
    assert first_line(movies, Joint_2=(DIFFERS, 0.02), Joint_3=(DIFFERS, -0.03)) == (
        "movies, against B-FP: Joint-2 and Joint-3 differ on these examples (one seed; another may differ)."
    )
    assert first_line(movies, Joint_2=(ALIKE, 0.001), Joint_3=(UNRESOLVED, 0.004)) == (
        "movies, against B-FP: Joint-2 is level within 1 point of accuracy in 39 % fewer stored bytes; "
        "Joint-3 is unresolved in 40 % fewer stored bytes (one seed; another may differ)."
    )


def test_small_detectable_difference_is_not_rounded_to_zero(movies: Evidence) -> None:
    rows = movies.comparisons.assign(detectable=0.0001)
    text = " ".join(verdict([replace(movies, comparisons=rows)]))
    assert "a true difference of 0.01 points of accuracy is found in four of five studies" in text
    assert " 0.0 " not in text


def test_chance_level_and_collapsed_runs_precede_the_figure(maker: Any, tmp_path: Path) -> None:
    maker.classifier("B-FP", [True] * 36 + [False] * 4)
    maker.classifier("B-Q4", [True] * 18 + [False] * 22)
    report = collect(load_study(open_store(str(tmp_path))))
    level, collapsed = report.sections[0].warnings
    assert level.startswith("Chance level: naming the most frequent class is right in ")
    assert collapsed.startswith("B-Q4 movies s0 ended at chance: 45.0 % right")
    html = page(report)
    assert (
        html.index("Chance level")
        < html.index("ended at chance")
        < html.index('data-chart="quality-bytes-movies"')
    )


@pytest.mark.parametrize("profile", ["smoke", "systems-smoke-quick"])
def test_smoke_runs_are_named_beside_another_experiment_of_the_store(
    maker: Any, tmp_path: Path, profile: str
) -> None:
    maker.run("B-FP", metrics={"eval/acc": 0.5}, tags={"profile": profile}, experiment="bitrank-smoke")
    maker.run("B-FP", metrics={"eval/acc": 0.9}, tags={"profile": "laptop"}, experiment="bitrank-laptop")
    database = open_store(str(tmp_path))
    assert "mean nothing" in notice(load_study(database, "bitrank-smoke"))
    assert notice(load_study(database, "bitrank-laptop")) == ""


def test_page_of_profile_smoke_begins_with_a_warning(maker: Any, tmp_path: Path) -> None:
    add_study(maker, arms=("B-FP",), tasks=("wiki",))
    ordinary = page(collect(load_study(open_store(str(tmp_path)))))
    assert "mean nothing" not in ordinary
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        database.execute("DELETE FROM tags WHERE key = 'profile'")
        database.execute(
            "INSERT INTO tags (key, value, run_uuid) SELECT 'profile', 'smoke', run_uuid FROM runs"
        )
    report = collect(load_study(open_store(str(tmp_path))))
    html = page(report)
    assert "The numbers on this page mean nothing" in html
    assert html.index("mean nothing") < html.index("<h1>")


def test_verdicts_of_one_seed_are_not_coloured_as_success_or_failure(maker: Any, tmp_path: Path) -> None:
    maker.classifier("B-FP", [True] * 30 + [False] * 10)
    maker.classifier("B-Q4", [True] * 12 + [False] * 28)
    html = page(collect(load_study(open_store(str(tmp_path)))))
    assert (
        f'<td data-label="Verdict" class="verdict one-seed">{DIFFERS}</td>' in html
        and 'class="verdict worse"' not in html
    )


def test_lower_perplexity_is_better(maker: Any, tmp_path: Path) -> None:
    add_study(maker, arms=("B-FP", "Joint-1", "Joint-2"), tasks=("wiki",), seeds=3)
    first = verdict([of(tmp_path, "wiki")])[0]
    assert first == "wiki, against B-FP: Joint-2 and Joint-1 are worse."


def frame(predictions: list[int], **more: Any) -> pd.DataFrame:
    return pd.DataFrame(
        {"id": ["a", "b", "c", "d"], "label": [0, 1, 0, 1], "prediction": predictions, **more}
    )


def test_disagreements_are_counted_and_shown() -> None:
    found = disagreements(
        {"B-FP": frame([0, 1, 1, 0], confidence=[0.9, 0.8, 0.7, 0.6]), "B-Q4": frame([0, 0, 1, 1])}
    )
    assert found.sentence == "Of 4 examples all arms are right on 1 and wrong on 1; they disagree on 2."
    assert found.heads == ("Example", "Label", "B-FP", "B-Q4")
    assert found.rows == (("b", "1", "✓ 1 (0.80)", "✗ 0"), ("d", "1", "✗ 0 (0.60)", "✓ 1"))


def test_disagreements_are_sorted_by_evenness_of_the_split() -> None:
    texts = ["one", "two", "three", "four"]
    arms = {
        "A": frame([0, 1, 0, 0], text=texts),
        "B": frame([0, 1, 1, 0], text=texts),
        "C": frame([0, 0, 1, 1]),
        "D": frame([0, 1, 0, 1]),
    }
    assert [row[0] for row in disagreements(arms).rows] == ["three", "four", "two"]
    assert len(disagreements(arms, shown=1).rows) == 1


def test_one_arm_has_no_disagreements() -> None:
    assert disagreements({"A": frame([0, 1, 0, 1])}).rows == ()


def test_continuations_are_listed_by_prompt_and_arm(maker: Any, tmp_path: Path) -> None:
    run_ids = add_study(maker, arms=("B-FP", "B-Q4", "B-Ada"), tasks=("wiki",))
    for run_id, text in zip(run_ids[:2], ("is a city", "is a is a"), strict=True):
        path = tmp_path / "artifacts/bitrank-test" / run_id / "artifacts/continuations.json"
        path.write_text(json.dumps([{"prompt": "Paris", "continuation": text}]))
    study = load_study(open_store(str(tmp_path)))
    found = side_by_side(study, gather(study, "wiki"))
    assert found.rows == (("Paris", "B-FP", "is a city"), ("Paris", "B-Q4", "is a is a"))
    assert found.sentence.endswith("No texts of B-Ada.")
    path.write_text('{"Paris": 1}')
    with pytest.raises(AnalysisError, match=r"expected .*continuations\.json to be a list"):
        side_by_side(study, gather(study, "wiki"))


def test_missing_continuations_give_only_a_sentence(maker: Any, tmp_path: Path) -> None:
    add_study(maker, arms=("B-FP",), tasks=("wiki",))
    study = load_study(open_store(str(tmp_path)))
    found = side_by_side(study, gather(study, "wiki"))
    assert found.sentence == "No run has a continuations.json, so there are no texts to compare."
    assert found.rows == ()


@pytest.mark.parametrize("name", ["predictions.parquet", "ranks.json", "plan.json", "spec.json"])
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_truncated_artifacts_are_reported(maker: Any, tmp_path: Path, name: str, share: float) -> None:
    add_study(maker, arms=("B-FP", "B-Q4"), tasks=("movies",))
    files = sorted(tmp_path.rglob(name))
    if not files:
        pytest.skip(f"this study has no {name}")
    for path in files[:1]:
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    report = collect(load_study(open_store(str(tmp_path))))
    assert any(name in line for line in [*report.gaps, *report.not_run])
    assert "<h1>" in page(report)
