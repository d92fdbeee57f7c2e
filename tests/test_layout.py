"""Layout: few top-level files, no import cycles, mirrored tests, and only public names imported."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = {
    path.name: path for path in [*ROOT.glob("packages/*/src/bitrank_*"), ROOT / "orchestrator/src/bitrank"]
}
TOP_FILES = 6
FUNCTION_LINES = 45  # docstring not counted
FILE_LINES = 330


def module_name(path: Path, package: Path) -> str:
    parts = path.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path, package): path for package in SOURCES.values() for path in package.rglob("*.py")}


def executed(node: ast.AST) -> Iterator[ast.AST]:
    """``node`` and its descendants, without blocks of ``if TYPE_CHECKING``."""
    yield node
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
            yield from executed(child)


def imports(path: Path) -> Iterator[tuple[str, str]]:
    """(module, name) of every import in ``path``, also in functions; name "" for ``import module``."""
    for node in executed(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                yield node.module, alias.name
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, ""


def edges(name: str) -> set[str]:
    """Modules of this repository that module ``name`` imports, lazy imports included."""
    found = set()
    for module, imported in imports(MODULES[name]):
        submodule = f"{module}.{imported}"
        if submodule in MODULES:
            found.add(submodule)
        elif module in MODULES:
            found.add(module)
    return found - {name}


def public_names(module: str) -> set[str]:
    """``__all__`` of a package's ``__init__``; nothing for other modules."""
    path = MODULES.get(module)
    if path is None or path.name != "__init__.py":
        return set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and any(
            isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets
        ):
            return set(ast.literal_eval(node.value))
    return set()


def cycle(graph: dict[str, set[str]]) -> list[str]:
    """The nodes of a cycle of ``graph`` in the order of imports; empty if there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(reversed(error.args[1]))
    return []


def test_a_cycle_is_found_in_the_order_of_imports() -> None:
    assert cycle({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    found = cycle({"a": {"b"}, "b": {"c"}, "c": {"a"}})
    assert found[0] == found[-1] and set(pairwise(found)) == {("a", "b"), ("b", "c"), ("c", "a")}


def test_imports_have_no_cycle() -> None:
    assert cycle({name: edges(name) for name in MODULES}) == []


def test_folders_of_the_orchestrator_have_no_import_cycle() -> None:
    def folder(name: str) -> str:
        return ".".join(name.split(".")[:2])

    # A module without imports from this repository cannot be part of a cycle.
    leaves = {
        name for name in MODULES if not {other for other in edges(name) if other.startswith("bitrank.")}
    }
    graph: dict[str, set[str]] = {}
    for name in MODULES:
        if name.startswith("bitrank."):
            inside = {folder(other) for other in edges(name) - leaves if other.startswith("bitrank.")}
            graph.setdefault(folder(name), set()).update(inside - {folder(name)})
    assert cycle(graph) == []


def folder_order() -> list[str]:
    """Folders of the orchestrator in the order of the table in ``docs/architecture.md``, highest first."""
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    table = page.partition("| folder of `orchestrator/src/bitrank` | role |")[2].partition("\n\n")[0]
    return re.findall(r"^\| `(\w+)/`", table, re.MULTILINE)


def test_folders_of_the_orchestrator_import_only_folders_below_them() -> None:
    order = folder_order()
    folders = {path.parent.name for path in SOURCES["bitrank"].glob("*/__init__.py")}
    assert set(order) == folders, "the table lists every folder"
    place = {folder: number for number, folder in enumerate(order)}
    upward = []
    for name in MODULES:
        folder = name.split(".")[1] if name.startswith("bitrank.") else ""
        for other in edges(name):
            target = other.split(".")[1] if other.startswith("bitrank.") else ""
            if folder in place and target in place and place[target] < place[folder]:
                upward.append(f"{name} imports {other}")
    assert upward == []


def test_top_folder_of_the_orchestrator_has_few_files() -> None:
    files = sorted(path.name for path in SOURCES["bitrank"].glob("*.py"))
    assert len(files) <= TOP_FILES, files


def test_tests_of_the_orchestrator_mirror_its_folders() -> None:
    tests = ROOT / "orchestrator/tests"
    assert not list(tests.glob("test_*.py"))
    folders = {path.parent.relative_to(tests) for path in tests.rglob("test_*.py")}
    assert [folder for folder in folders if not (SOURCES["bitrank"] / folder).is_dir()] == []


@pytest.mark.parametrize("place", ["orchestrator/src", "benchmarks", "tools", "docker"])
def test_only_public_names_of_packages_are_imported(place: str) -> None:
    private_imports = []
    for path in (ROOT / place).rglob("*.py"):
        for module, name in imports(path):
            package = module.split(".")[0]
            if package not in SOURCES or package == "bitrank":
                continue
            if name not in public_names(module) and f"{module}.{name}" not in MODULES:
                private_imports.append(f"{path.relative_to(ROOT)}: from {module} import {name}")
    assert private_imports == []


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of ``function`` without its docstring."""
    lines = (function.end_lineno or 0) - function.lineno + 1
    if ast.get_docstring(function) is None:
        return lines
    docstring = function.body[0]
    return lines - ((docstring.end_lineno or 0) - docstring.lineno + 1)


@pytest.mark.parametrize("module", MODULES)
def test_files_and_functions_are_short(module: str) -> None:
    text = MODULES[module].read_text(encoding="utf-8")
    assert len(text.splitlines()) <= FILE_LINES
    functions = [
        n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert {f.name: code_lines(f) for f in functions if code_lines(f) > FUNCTION_LINES} == {}


def test_life_of_a_run_names_files_and_functions_that_exist() -> None:
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    table = page.partition("| step | file: functions |")[2].partition("\n\n")[0]
    found = re.findall(r"`([\w/]+\.py)`: ([^;|]+)", table)
    assert len(found) > 10
    for file, functions in found:
        package = SOURCES["bitrank"] / file
        path = package if package.is_file() else SOURCES[file.split("/")[0]].parent / file
        tree = ast.parse(path.read_text(encoding="utf-8"))
        defined = {n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)}
        assert set(re.findall(r"`(\w+)`", functions)) <= defined, file
