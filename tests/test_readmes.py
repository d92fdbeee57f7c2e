"""The first example of each package's README runs as written, and so does the config of the root README."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

import pytest
from guide_blocks import ROOT, Block, SourceCopy, blocks_of, python_blocks

PATTERNS = ("*.md", "packages/*/README.md", "orchestrator/README.md", "benchmarks/README.md", "docs/**/*.md")
PAGES = sorted(path for pattern in PATTERNS for path in ROOT.glob(pattern))


@pytest.mark.parametrize("name", ["data", "planner", "quant", "adapters", "trainer"])
def test_first_example_of_a_package_runs(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = python_blocks((ROOT / "packages" / name / "README.md").read_text())[0]
    exec(compile(code, f"{name}/README.md", "exec"), {"__name__": "readme"})
    assert capsys.readouterr().out.strip()


def test_config_of_the_readme_needs_only_its_two_blocks(tmp_path: Path) -> None:
    blocks = blocks_of((ROOT / "README.md").read_text())
    assert [block.action for block in blocks] == ["append", "after"]
    listed = Block("run", "", "", "sh", "bitrank list --configs Deep-8")
    assert SourceCopy(tmp_path).follow([*blocks, listed], slow=False).count("Deep-8") == 2


@pytest.mark.slow
def test_config_of_the_readme_trains(tmp_path: Path) -> None:
    run = "bitrank run --profile smoke --config Deep-8 --task toy_sentences --max-steps 2"
    blocks = [*blocks_of((ROOT / "README.md").read_text()), Block("run", "", "", "sh", run)]
    assert "1 of 1 runs are complete" in SourceCopy(tmp_path).follow(blocks, slow=False)


def test_readme_is_at_most_6_kib() -> None:
    assert len((ROOT / "README.md").read_bytes()) <= 6 * 1024


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_relative_links_resolve(page: Path) -> None:
    """They also work where the repository is browsed. ``mkdocs build --strict`` checks links to headings."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:|#", target):
            continue
        path = (page.parent / unquote(target.partition("#")[0])).resolve()
        assert path.exists(), f"{page.name} links to {target}"
