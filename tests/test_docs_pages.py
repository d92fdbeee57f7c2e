"""Documents agree with the code: generated pages are complete, and shown commands are valid."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "tools" / "docs"
READMES = [*ROOT.glob("packages/*/README.md"), ROOT / "orchestrator/README.md", ROOT / "benchmarks/README.md"]
DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *READMES]
SHELL = re.compile(r"```sh\n(.*?)```", re.DOTALL)
COMMAND = re.compile(r"^(?:\w+=\S+ )*(?:\.venv/bin/)?bitrank (.+)$", re.MULTILINE)
INLINE = re.compile(r"(?<!`)`(?!`)([^`\n]+)`")
# Decisions and the lab notebook describe the state of their day.
HISTORY = ("CHANGELOG.md", "docs/decisions/", "docs/lab-notebook/")
pytest.importorskip("mkdocs", reason="the tools of `make docs` are not installed")


@pytest.fixture(autouse=True)
def _modules_of_the_site(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their folder comes first for one test; mkdocs does the same for hooks."""
    monkeypatch.setattr(sys, "path", [str(PAGES), *sys.path])


def test_rows_of_a_table_have_as_many_cells_as_its_head_where_pipes_in_code_split_cells_too() -> None:
    """As on GitHub; the site alone keeps a pipe inside of code."""
    ragged = []
    for path in DOCUMENTS:
        cells, code = 0, False
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            code ^= line.startswith("```")
            pipes = len(re.findall(r"(?<!\\)\|", line)) if line.startswith("|") and not code else 0
            if pipes and cells not in (0, pipes):
                ragged.append(f"{path.relative_to(ROOT)}:{number}")
            cells = pipes and (cells or pipes)
    assert ragged == []


def test_committed_reference_pages_equal_those_made_from_the_code(tmp_path: Path) -> None:
    from write_reference import GENERATED, REFERENCE, write_reference

    write_reference(tmp_path)
    made = {name: (tmp_path / name).read_text(encoding="utf-8") for name in GENERATED}
    committed = {name: (REFERENCE / name).read_text(encoding="utf-8") for name in GENERATED}
    stale = [name for name, text in made.items() if text != committed[name]]
    assert stale == [], "renew them with `make reference`"


def test_descriptions_of_names_have_no_markup_of_docstrings() -> None:
    """Such as ``high``, a parameter that no reader of the page gives."""
    from names_page import names_page

    assert [line for line in names_page().splitlines() if "``" in line] == []


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
    spec = find("bitrank.spec.run_spec:RunSpec")
    profiles = find("bitrank.spec.profiles:PROFILES")
    assert all(f"| `{name}` |" in page for name in spec.__dataclass_fields__)
    assert all(f"### {name}\n" in page for name in profiles)


METADATA = {"about": "Compute type.", "unit": "bits", "choices": ("auto", "fp32")}


@dataclass(frozen=True)
class Sample:
    name: str
    # Longest sequence.
    length: int = 128  # in tokens
    dtype: str = field(default="auto", metadata=METADATA)


def test_meaning_of_a_field_is_its_metadata_or_its_comment() -> None:
    from spec_page import field_table

    table = field_table(Sample, {"length"})
    assert table[2:-1] == [
        "| `name` | `str` | required |  |  |",
        "| `length` | `int` | `128` | yes | Longest sequence. in tokens |",
        "| `dtype` | `str` | `'auto'` |  | Compute type. Unit: bits. Allowed: `auto`, `fp32`. |",
    ]


def test_shown_commands_quote_what_zsh_expands() -> None:
    """zsh, the shell of macOS, replaces an unquoted word that begins with ``=`` by the path of a command."""
    unquoted = []
    for path in DOCUMENTS:
        name = str(path.relative_to(ROOT))
        if name.startswith(HISTORY):
            continue
        text = path.read_text(encoding="utf-8")
        commands = [
            *SHELL.findall(text),
            *(code for code in INLINE.findall(text) if code.startswith("bitrank ")),
        ]
        unquoted += [name for command in commands if re.search(r"\s=[A-Za-z]", command)]
    assert unquoted == []


def _first_column(document: str, heading: str) -> set[str]:
    """Names in backticks in the first column of the first table after ``heading``."""
    table = (ROOT / document).read_text().partition(heading)[2].lstrip().partition("\n\n")[0]
    rows = [line.split("|")[1] for line in table.splitlines()[2:]]
    return {name for row in rows for name in re.findall(r"`([\w-]+)`", row)}


def test_guide_lists_every_planner_that_minimizes_cost() -> None:
    from bitrank.planning.planners import PLANNERS, by_cost, planner_names

    listed = _first_column("docs/guides/plan-for-a-budget.md", "\n## Planners\n")
    assert {name for name in planner_names() if by_cost(name)} <= listed <= set(planner_names())
    assert set(PLANNERS) - listed, "the table links to the generated page for the remaining ones"


def test_planner_readme_lists_every_solver_and_counts_the_rules() -> None:
    from bitrank_planner import SOLVERS
    from bitrank_planner.heuristics import PRECISION_HEURISTICS, RANK_HEURISTICS

    readme = "packages/planner/README.md"
    table = (ROOT / readme).read_text().partition("\n| name |")
    assert _first_column(readme, table[0][-20:]) == set(SOLVERS)
    counts = [len(RANK_HEURISTICS), len(PRECISION_HEURISTICS)]
    words = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    text = " ".join((ROOT / readme).read_text().split())
    assert f"has {words[counts[0]]} rules for ranks" in text
    assert f"and {words[counts[1]]} for formats" in text


def test_names_page_has_every_registered_name() -> None:
    from bitrank.export.registry import EXPORTS
    from bitrank.planning.planners import PLANNERS
    from bitrank.planning.restrictions import RUNTIMES
    from bitrank.run.text_scores import TEXT_SCORES
    from bitrank.spec.configs import CONFIGS
    from bitrank.spec.inits import INITS
    from bitrank.spec.learning import LEARNING
    from bitrank.spec.profiles import PROFILES
    from bitrank.spec.task_kinds import TASK_KINDS
    from bitrank_data import TASKS
    from bitrank_planner import SEARCHES
    from bitrank_quant import BACKENDS, FORMATS, OVERRIDES, QUANTIZERS
    from names_page import names_page

    page = names_page()
    of_matrices = (*FORMATS, *QUANTIZERS, *BACKENDS, *OVERRIDES, *INITS)
    of_plans = (*PLANNERS, *SEARCHES, *LEARNING, *RUNTIMES, *EXPORTS)
    of_runs = (*CONFIGS, *PROFILES, *TASKS, *TASK_KINDS, *TEXT_SCORES)
    assert [name for name in (*of_matrices, *of_plans, *of_runs) if f"`{name}`" not in page] == []


def test_module_page_has_every_module_of_the_orchestrator() -> None:
    from modules_page import SOURCE, modules_page

    page = modules_page()
    modules = {path.stem for path in SOURCE.rglob("*.py")} - {"__init__"}
    assert all(f"| `{name}` |" in page for name in modules)


def _shell_lines() -> list[tuple[str, str]]:
    """(document, shell text) of every sh block, with continued lines joined."""
    found = []
    for path in DOCUMENTS:
        for text in SHELL.findall(path.read_text()):
            found.append((path.name, text.replace("\\\n", " ")))
    return found


def test_every_bitrank_command_in_documents_is_valid() -> None:
    from cli_page import find_parser

    parser, count = find_parser(), 0
    for name, text in _shell_lines():
        for line in COMMAND.findall(text):
            arguments = shlex.split(line.partition(" | ")[0], comments=True)
            arguments = [word for word in arguments if word != "…"]
            try:
                parser.parse_args(arguments)
            except SystemExit as error:
                pytest.fail(f"{name}: bitrank {line} is not valid ({error})")
            count += 1
    assert count > 30, "commands are found"


def _inline_code(paths: Iterable[Path]) -> list[tuple[str, str]]:
    """(document, text) of every piece of code inside a sentence or a table."""
    found = []
    for path in paths:
        name = path.relative_to(ROOT).as_posix()
        if not any(part in name for part in HISTORY):
            text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
            found += [(name, code) for code in INLINE.findall(text)]
    return found


def test_every_bitrank_command_inside_a_sentence_exists_with_its_options() -> None:
    from cli_page import find_parser

    commands = next(action.choices for action in find_parser()._actions if action.dest == "command")
    count = 0
    for name, code in _inline_code(DOCUMENTS):
        words = code.split()
        if words[0] != "bitrank" or len(words) < 2 or words[1].startswith("-") or words[1].isupper():
            continue
        assert words[1] in commands, f"{name}: {code}"
        known = {text for action in commands[words[1]]._actions for text in action.option_strings}
        options = {word.partition("=")[0] for word in words[2:] if word.startswith("--")}
        assert options <= known, f"{name}: {code}"
        count += 1
    assert count > 20, "commands are found"


def test_every_identifier_in_a_readme_occurs_in_the_sources() -> None:
    sources = [*ROOT.glob("packages/*/src/**/*"), *ROOT.glob("orchestrator/src/**/*")]
    text = "\n".join(path.read_text() for path in sources if path.suffix in {".py", ".c", ".h"})
    defined = set(re.findall(r"\w+", text))
    named = {
        (name, code.removesuffix("()"))
        for name, code in _inline_code(READMES)
        if not name.startswith("benchmarks/")  # it names functions of other projects
        and re.fullmatch(r"[a-z]+(_[a-z]+)+(\(\))?", code)
    }
    assert len(named) > 20, "identifiers are found"
    assert {(name, code) for name, code in named if code not in defined} == set()


def test_every_make_target_in_documents_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for name, text in _shell_lines():
        for target in re.findall(r"^make ([a-z-]+)", text, re.MULTILINE):
            assert target in targets, f"{name}: make {target}"
