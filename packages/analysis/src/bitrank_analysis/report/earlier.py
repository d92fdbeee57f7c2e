"""Recognition of reports of versions that wrote no list of files (:mod:`bitrank_analysis.outputs`)."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from bitrank_analysis.published import COLUMNS

_PAGE = '<p class="kicker">bitrank report'  # in every page
_HEADING = re.compile(r"# bitrank-\S+\s")  # of report.md: the name of the experiment
_COMPARED = {"config", "stored_bytes", "baseline", "difference", "verdict"}  # columns of a study's arms


def of_older_report(folder: Path, experiment: str) -> Callable[[str], bool]:
    """Tell from name and content whether an older version wrote a file in ``folder``."""
    page = folder / "report.html"
    has_page = page.is_file() and _PAGE in page.read_text(encoding="utf-8", errors="replace")

    def is_older(name: str) -> bool:
        if name == "report.html" or "/" in name:
            return has_page
        first = _first_line(folder / name)
        if name == "report.md":
            return has_page or first.strip() == f"# {experiment}" or bool(_HEADING.match(first))
        if name.endswith(".csv"):
            columns = first.strip().split(",")
            return set(columns) >= _COMPARED or columns == COLUMNS
        return name.startswith("difference-bytes-")

    return is_older


def _first_line(path: Path) -> str:
    with path.open(encoding="utf-8", errors="replace") as lines:
        return lines.readline()
