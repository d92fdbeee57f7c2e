"""Package boundaries: no sibling imports, no heavy imports in light packages, declared dependencies."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = sorted(path.name for path in (ROOT / "packages").iterdir() if (path / "pyproject.toml").exists())
EVERY = [ROOT / "packages" / name for name in PACKAGES] + [ROOT / "orchestrator"]
# Import name → distribution name, where they differ.
DISTRIBUTION = {
    "optimum": "optimum-quanto",
    "PIL": "pillow",
    "yaml": "pyyaml",
    "dotenv": "python-dotenv",
    "vl_convert": "vl-convert-python",
    "adbc_driver_sqlite": "adbc-driver-sqlite",
    "adbc_driver_postgresql": "adbc-driver-postgresql",
}


def imports(folder: Path) -> set[str]:
    """Top-level names that the sources under ``folder`` import, lazy imports included."""
    return set().union(*(imports_of(ast.parse(path.read_text())) for path in folder.rglob("*.py")))


def imports_of(tree: ast.AST) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("name", PACKAGES)
def test_package_imports_no_sibling(name: str) -> None:
    ours = {f"bitrank_{other}" for other in PACKAGES if other != name} | {"bitrank"}
    assert not imports(ROOT / "packages" / name) & ours


def test_data_and_analysis_stay_light() -> None:
    assert not imports(ROOT / "packages/data/src") & {"torch", "mlflow"}
    assert not imports(ROOT / "packages/analysis/src") & {"torch", "mlflow", "transformers"}


def test_only_commands_api_and_tracker_import_analysis() -> None:
    """Decision 33. They import it inside functions, so that no run imports it."""
    sources = (ROOT / "orchestrator/src").rglob("*.py")
    importers = {
        path.relative_to(ROOT / "orchestrator/src/bitrank").as_posix()
        for path in sources
        if "bitrank_analysis" in imports_of(ast.parse(path.read_text()))
    }
    others = {"api.py", "tracking/plan_images.py"}
    assert {name for name in importers if not name.startswith("cli/")} <= others
    for name in importers:
        tree = ast.parse((ROOT / "orchestrator/src/bitrank" / name).read_text())
        tree.body = [node for node in tree.body if not isinstance(node, ast.FunctionDef | ast.If)]
        assert "bitrank_analysis" not in imports_of(tree)


@pytest.mark.parametrize("folder", EVERY, ids=lambda path: path.name)
def test_imports_are_declared_dependencies(folder: Path) -> None:
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    listed = project["dependencies"] + [
        d for extra in project.get("optional-dependencies", {}).values() for d in extra
    ]
    declared = {re.split(r"[\[<>=!~ ]", d)[0].lower().replace("_", "-") for d in listed}
    own = {path.name for path in (folder / "src").iterdir()} | {
        path.stem for path in folder.glob("tests/*.py")
    }
    for name in imports(folder) - own - set(sys.stdlib_module_names):
        assert DISTRIBUTION.get(name, name.replace("_", "-")).lower() in declared, (
            f"{folder.name} imports {name} but does not declare it"
        )


@pytest.mark.parametrize("folder", EVERY, ids=lambda path: path.name)
def test_changelog_has_the_version_and_readme_has_an_example(folder: Path) -> None:
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    version = importlib.metadata.version(project["name"])
    assert re.search(rf"^## {re.escape(version)}\b", (folder / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert "```" in (folder / "README.md").read_text()


def test_main_function_of_a_run_is_short() -> None:
    assert len((ROOT / "orchestrator/src/bitrank/run/train_run.py").read_text().splitlines()) < 80
