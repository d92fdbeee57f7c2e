"""Allocations of other tools at equal bytes in the paper: a table and a sentence, from one CSV file."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from bitrank_analysis import phrasing
from bitrank_analysis.errors import AnalysisError
from bitrank_analysis.paper.claims import ALPHA
from bitrank_analysis.paper.latex import tabular

_FILE = "comparisons.csv"
_NEEDED = {"quantizer", "bits", "allocation", "metric", "perplexity", "difference", "p_holm"}
_NO_DIFFERENCE = ", n.s."


def read_rivals(folder: Path | None) -> pd.DataFrame:
    """Perplexities by quantizer, budget and allocation, from ``comparisons.csv``; empty without a folder.

    ``difference`` is the log ratio of perplexities to the reference at the same quantizer and budget, and
    ``p_holm`` its corrected p. A row without a difference is a reference; one with a difference and without
    ``p_holm`` is outside the family of tests, and is left out of the paper.
    Raises :class:`AnalysisError` if the file is missing, has other columns, or no comparison.
    """
    if folder is None:
        return pd.DataFrame()
    place = folder / _FILE
    found = pd.read_csv(place) if place.is_file() else pd.DataFrame()
    if not set(found.columns) >= _NEEDED or found["p_holm"].isna().all():
        raise AnalysisError(
            f"expected comparisons with other tools in {place} (columns {', '.join(sorted(_NEEDED))}), found "
            "none; give the folder that `benchmarks/rivals.py report` writes"
        )
    return found[found["p_holm"].notna() | found["difference"].isna()]


def rivals_table(found: pd.DataFrame) -> str:
    """One line for each budget and quantizer, one column for each allocation; "" without comparisons.

    A cell is the perplexity with its difference from the reference in percent. A difference
    that is not significant at :data:`ALPHA` after correction is marked n.s.
    """
    if found.empty:
        return ""
    names = [str(name) for name in dict.fromkeys(found["allocation"])]
    groups = [
        (f"quantizer {quantizer}", [_line(rows, bits, names) for bits, rows in part.groupby("bits")])
        for quantizer, part in found.groupby("quantizer")
    ]
    return tabular("r" * (len(names) + 1), ["Bits", *names], groups)


def _line(rows: pd.DataFrame, bits: float, names: list[str]) -> list[str]:
    cells = {str(row["allocation"]): _cell(row) for _, row in rows.iterrows()}
    return [f"{bits:g}", *(cells.get(name, phrasing.NOTHING) for name in names)]


def _cell(row: pd.Series) -> str:
    quality = phrasing.quality(float(row["perplexity"]), str(row["metric"]))
    if pd.isna(row["difference"]):
        return quality
    shown = "" if row["p_holm"] < ALPHA else _NO_DIFFERENCE
    return f"{quality} ({_change(row)}{shown})"


def _change(row: pd.Series) -> str:
    return phrasing.signed(phrasing.change(float(row["difference"]), str(row["metric"])))


def rivals_sentences(found: pd.DataFrame) -> list[str]:
    """How many comparisons the reference wins and loses, and which show no difference."""
    if found.empty:
        return []
    reference = str(found.loc[found["difference"].isna(), "allocation"].iloc[0])
    tests = found[found["p_holm"].notna()]
    shown = tests[tests["p_holm"] < ALPHA]
    ahead, behind = (shown["difference"] > 0).sum(), (shown["difference"] < 0).sum()
    text = (
        f"Of {len(tests)} comparisons at equal bytes, corrected together, {reference} has the lower "
        f"perplexity in {ahead or 'none'} and the higher in {behind or 'none'}"
    )
    open_ones = [
        f"{row['allocation']} at {row['bits']:g} bits by {row['quantizer']} ({_change(row)} %)"
        for _, row in tests[tests["p_holm"] >= ALPHA].iterrows()
    ]
    return [f"{text}; no difference is shown from {phrasing.listed(open_ones)}." if open_ones else f"{text}."]
