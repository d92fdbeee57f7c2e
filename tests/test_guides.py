"""Guides work as written: their edits are applied to a copy, marked blocks run on tiny models."""

from __future__ import annotations

from pathlib import Path

import pytest
from guide_blocks import ROOT, SourceCopy, blocks_of, missing_modules

DOCS = ROOT / "docs"
FILES = sorted(DOCS.rglob("*.md"))
PAGES = {path.relative_to(DOCS).as_posix(): blocks_of(path.read_text()) for path in FILES}
MARKS = ("<!-- run", "<!-- file", "<!-- append", "<!-- insert")
QUICK = [page for page, blocks in PAGES.items() if any(block.action == "run" for block in blocks)]
SLOW = [page for page, blocks in PAGES.items() if any(block.action == "run slow" for block in blocks)]


def test_every_addition_has_a_tested_guide() -> None:
    additions = {"rank-rule", "format", "backend", "planner", "task", "task-kind"}
    assert {f"guides/add-a-{name}.md" for name in additions} <= {*QUICK, *SLOW}


def test_every_marked_block_is_parsed() -> None:
    """A misspelled comment would silently exclude its block."""
    for page, blocks in PAGES.items():
        lines = (DOCS / page).read_text().splitlines()
        marks = sum(line.startswith(MARKS) for line in lines)
        assert marks == len(blocks), page


@pytest.mark.parametrize("page", QUICK)
def test_quick_blocks_of_a_guide_run(page: str, tmp_path: Path) -> None:
    assert SourceCopy(tmp_path).follow(PAGES[page], slow=False).strip()


@pytest.mark.slow
@pytest.mark.parametrize("page", SLOW)
def test_all_blocks_of_a_guide_run(page: str, tmp_path: Path) -> None:
    assert SourceCopy(tmp_path).follow(PAGES[page], slow=True).strip()
    if missing := missing_modules(PAGES[page]):
        pytest.skip(f"all but blocks that need {', '.join(missing)}: pip install 'bitrank[runtimes]'")
