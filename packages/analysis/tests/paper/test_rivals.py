"""Allocations of other tools in the paper: exact cells of the table, the sentence, and refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from bitrank_analysis.errors import AnalysisError
from bitrank_analysis.paper import write_paper
from bitrank_analysis.paper.rivals import read_rivals, rivals_sentences, rivals_table

NONE = float("nan")


def comparisons(folder: Path) -> Path:
    """Two other tools at two budgets, and another cost of ours, which is outside the family."""
    rows = [
        ("search", 4.0, "ours", 20.0, NONE, NONE),
        ("search", 4.0, "ours, other cost", 20.2, 0.00995, NONE),
        ("search", 4.0, "first", 22.0, np.log(1.1), 0.0004),
        ("search", 4.0, "second", 20.1, np.log(1.005), 0.3),
        ("search", 4.5, "ours", 10.0, NONE, NONE),
        ("search", 4.5, "first", 9.0, np.log(0.9), 0.001),
    ]
    columns = ["quantizer", "bits", "allocation", "perplexity", "difference", "p_holm"]
    frame = pd.DataFrame(rows, columns=columns).assign(metric="ppl")
    folder.mkdir(parents=True, exist_ok=True)
    frame.to_csv(folder / "comparisons.csv", index=False)
    return folder


def test_table_has_a_line_for_each_budget_and_marks_what_is_not_shown(tmp_path: Path) -> None:
    lines = rivals_table(read_rivals(comparisons(tmp_path))).splitlines()
    assert r"Bits & ours & first & second \\" in lines
    assert any("quantizer search" in line for line in lines)
    assert r"4 & 20.00 & 22.00 (+10.0) & 20.10 (+0.5, n.s.) \\" in lines
    assert r"4.5 & 10.00 & 9.00 ($-$10.0) & \textendash{} \\" in lines
    assert not any("other cost" in line for line in lines)


def test_sentence_counts_what_is_ahead_and_behind_and_names_what_is_open(tmp_path: Path) -> None:
    (text,) = rivals_sentences(read_rivals(comparisons(tmp_path)))
    assert text == (
        "Of 3 comparisons at equal bytes, corrected together, ours has the lower perplexity in 1 and the "
        "higher in 1; no difference is shown from second at 4 bits by search (+0.5 %)."
    )


def test_paper_gets_table_and_sentence_only_with_comparisons(maker: Any, tmp_path: Path) -> None:
    maker.classifier("B-FP", [True] * 60)
    plain = write_paper(str(maker.folder), tmp_path / "plain")
    assert not list(plain.rglob("*rivals*"))
    made = write_paper(str(maker.folder), tmp_path / "made", rivals=comparisons(tmp_path / "rivals"))
    assert {path.name for path in made.rglob("*rivals*")} == {"table-rivals.tex", "rivals.tex"}
    assert "has/table-rivals" in (made / "macros.tex").read_text()


def test_folder_without_comparisons_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AnalysisError, match="expected comparisons with other tools in"):
        read_rivals(tmp_path)
    (tmp_path / "comparisons.csv").write_text("allocation,perplexity\nours,20\n")
    with pytest.raises(AnalysisError, match="columns allocation, bits"):
        read_rivals(tmp_path)
    comparisons(tmp_path)
    frame = pd.read_csv(tmp_path / "comparisons.csv")
    frame.assign(p_holm=NONE).to_csv(tmp_path / "comparisons.csv", index=False)
    with pytest.raises(AnalysisError, match="expected comparisons"):
        read_rivals(tmp_path)
