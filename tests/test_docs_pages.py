"""Generated reference pages hold what the code holds: every command and option, every field, every name."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

PAGES = Path(__file__).resolve().parents[1] / "tools" / "docs"
pytest.importorskip("mkdocs", reason="the tools of `make docs` are not installed")


@pytest.fixture(autouse=True)
def _modules_of_the_site(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their folder comes first for one test; mkdocs does the same for hooks."""
    monkeypatch.setattr(sys, "path", [str(PAGES), *sys.path])


def test_command_line_page_has_every_command_and_option() -> None:
    from cli_page import cli_page, find_parser

    page = cli_page()
    commands = next(action.choices for action in find_parser()._actions if action.dest == "command")
    for name, parser in commands.items():
        assert f"## bitrank {name}\n" in page
        section = page.partition(f"## bitrank {name}\n")[2].partition("\n## ")[0]
        options = {text for action in parser._actions for text in action.option_strings} - {"-h", "--help"}
        assert all(option in section for option in options)


def test_spec_page_has_every_field_and_profile() -> None:
    from find import find
    from spec_page import spec_page

    page = spec_page()
    spec = find("bitrank.spec.run_spec:RunSpec", "bitrank.specs:RunSpec")
    profiles = find("bitrank.spec.profiles:PROFILES", "bitrank.profiles:PROFILES")
    assert all(f"| `{name}` |" in page for name in spec.__dataclass_fields__)
    assert all(f"### {name}\n" in page for name in profiles)


METADATA = {"about": "Compute type.", "unit": "bits", "choices": ("auto", "fp32")}


@dataclass(frozen=True)
class Sample:
    name: str
    # Longest sequence.
    length: int = 128  # in tokens
    dtype: str = field(default="auto", metadata=METADATA)


def test_field_says_what_its_metadata_or_its_comment_says() -> None:
    from spec_page import field_table

    table = field_table(Sample, {"length"})
    assert table[2:-1] == [
        "| `name` | `str` | required |  |  |",
        "| `length` | `int` | `128` | yes | Longest sequence. in tokens |",
        "| `dtype` | `str` | `'auto'` |  | Compute type. Unit: bits. Allowed: `auto`, `fp32`. |",
    ]


def test_names_page_has_every_registered_name() -> None:
    from bitrank_data import TASKS
    from bitrank_planner import SEARCHES
    from bitrank_quant import BACKENDS, FORMATS, OVERRIDES
    from names_page import names_page

    page = names_page()
    assert all(f"`{name}`" in page for name in (*FORMATS, *BACKENDS, *OVERRIDES, *TASKS, *SEARCHES))


def test_module_page_has_every_module_of_the_orchestrator() -> None:
    from modules_page import SOURCE, modules_page

    page = modules_page()
    modules = {path.stem for path in SOURCE.rglob("*.py")} - {"__init__"}
    assert all(f"| `{name}` |" in page for name in modules)
