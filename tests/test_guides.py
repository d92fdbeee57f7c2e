"""Guides are followed as written: files are edited in a copy, marked blocks run on tiny models."""

from __future__ import annotations

from pathlib import Path

import pytest
from guide_blocks import ROOT, SourceCopy, blocks_of

DOCS = ROOT / "docs"
FILES = sorted(DOCS.rglob("*.md"))
PAGES = {path.relative_to(DOCS).as_posix(): blocks_of(path.read_text()) for path in FILES}
MARKS = ("<!-- run", "<!-- file", "<!-- append", "<!-- insert")
QUICK = [page for page, blocks in PAGES.items() if any(block.action == "run" for block in blocks)]
SLOW = [page for page, blocks in PAGES.items() if any(block.action == "run slow" for block in blocks)]


def test_the_five_additions_have_a_guide_that_is_followed() -> None:
    additions = {"rank-rule", "format", "backend", "planner", "task"}
    assert {f"guides/add-a-{name}.md" for name in additions} <= {*QUICK, *SLOW}


def test_every_marked_block_is_understood() -> None:
    """A comment with a spelling mistake would leave its block out without a failure."""
    for page, blocks in PAGES.items():
        lines = (DOCS / page).read_text().splitlines()
        marks = sum(line.startswith(MARKS) for line in lines)
        assert marks == len(blocks), page


@pytest.mark.parametrize("page", QUICK)
def test_quick_blocks_of_a_guide_run(page: str, tmp_path: Path) -> None:
    assert SourceCopy(tmp_path).follow(PAGES[page], slow=False).strip()


@pytest.mark.slow
@pytest.mark.parametrize("page", SLOW)
def test_a_guide_runs_from_its_first_block_to_its_last(page: str, tmp_path: Path) -> None:
    assert SourceCopy(tmp_path).follow(PAGES[page], slow=True).strip()
