"""The paper's table of published claims: which findings enter it, and refusals."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from bitrank_analysis.errors import AnalysisError
from bitrank_analysis.paper import write_paper
from bitrank_analysis.paper.published import published_table, read_published
from bitrank_analysis.published import COLUMNS, NOT_SUPPORTED, NOT_TESTED, SUPPORTED

NONE = dict.fromkeys(COLUMNS)


def row(claim: str, finding: str, value: float = 0.0, metric: str = "acc") -> dict[str, Any]:
    arms = {} if finding == NOT_TESTED else {"candidate": "new", "baseline": "old"}
    numbers = {"seeds": 3, "value": value, "low": value - 0.01, "high": value + 0.01, "p_holm": 0.5}
    texts = {"source": "A 2024", "citation": "a2024", "statistic": "difference", "reason": "a reason"}
    return {**NONE, **texts, **arms, **numbers, "claim": claim, "finding": finding, "metric": metric}


def frame(*rows: dict[str, Any]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=COLUMNS)


def evidence(task: str, *rows: dict[str, Any]) -> Any:
    return SimpleNamespace(task=task, published=frame(*rows))


def cells(text: str) -> list[str]:
    """The claims and findings of the table, and its headings, in order."""
    lines = [line for line in text.splitlines() if "a2024" in line or "textit" in line]
    return [
        line.split("textit{")[1].split("}")[0]
        if "textit" in line
        else f"{line.split()[0]}: {line.split('&')[2].split()[0]} {line.split('&')[3].split(':')[0].strip()}"
        for line in lines
    ]


def test_findings_of_a_study_replace_only_claims_that_the_papers_runs_do_not_test() -> None:
    own = evidence("movies", row("one", NOT_TESTED), row("two", SUPPORTED, 0.1), row("three", NOT_TESTED))
    study = frame(row("one", NOT_SUPPORTED, 0.05), row("two", NOT_SUPPORTED, 0.2), row("three", NOT_TESTED))
    assert cells(published_table([own], {"movies": study})) == [
        "movies, accuracy",
        "one: +5.00 not supported",
        "two: +10.00 supported",
        r"three: \textendash{} not tested here",
    ]


def test_a_claim_that_neither_tests_has_the_reason_of_the_study_which_has_more_arms() -> None:
    own = evidence("movies", row("one", NOT_TESTED) | {"reason": "no finished run of new"})
    study = frame(row("one", NOT_TESTED) | {"reason": "not equal bytes"})
    assert "not equal bytes" in published_table([own], {"movies": study})


def test_tasks_of_studies_alone_follow_with_their_own_metric() -> None:
    own = evidence("movies", row("one", SUPPORTED, 0.1))
    study = frame(row("one", SUPPORTED, 0.2, "token_f1"), row("two", NOT_TESTED, metric="token_f1"))
    table = published_table([own], {"questions": study})
    assert cells(table)[2:] == ["questions, F1 of words", "one: +20.00 supported"], "tested claims alone"
    assert published_table([SimpleNamespace(task="movies", published=frame())], {}) == ""  # type: ignore[list-item]


def test_folders_of_studies_are_read_and_others_refused_with_what_is_missing(tmp_path: Path) -> None:
    written = frame(row("one", SUPPORTED, 0.1))
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        written.to_csv(tmp_path / name / "published-movies.csv", index=False)
    assert list(read_published([tmp_path / "a"])) == ["movies"]
    with pytest.raises(AnalysisError, match="movies is a task of two studies; give one folder for each task"):
        read_published([tmp_path / "a", tmp_path / "b"])
    (tmp_path / "old").mkdir()
    written.drop(columns="metric").to_csv(tmp_path / "old" / "published-movies.csv", index=False)
    for folder in (tmp_path / "old", tmp_path / "missing"):
        with pytest.raises(AnalysisError, match="give the results folder of a study of this version"):
            read_published([folder])


def test_paper_has_the_findings_of_a_study(maker: Any, tmp_path: Path) -> None:
    for config in ("B-FP", "B-Q4"):
        maker.classifier(config, [True] * 60 + [False] * 40)
    (tmp_path / "study").mkdir()
    frame(row("another claim", SUPPORTED, 0.1)).to_csv(tmp_path / "study" / "published-x.csv", index=False)
    made = write_paper(str(maker.folder), tmp_path / "made", published=[tmp_path / "study"])
    assert "another claim" in (made / "table-published.tex").read_text()
    assert "those of other studies" in (made / "published-note.tex").read_text()
    alone = write_paper(str(maker.folder), tmp_path / "alone")
    assert not (alone / "published-note.tex").exists()
