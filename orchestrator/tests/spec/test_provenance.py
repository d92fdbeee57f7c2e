"""Files whose content is hashed as the code of a run or of a measurement."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
from bitrank.errors import UserError
from bitrank.spec import provenance
from bitrank.spec.configs import CONFIGS, PlannedArm
from bitrank.spec.make_spec import make_spec
from bitrank.spec.profiles import PROFILES
from bitrank.spec.provenance import (
    CHANGES_NO_NUMBER,
    PLANNING,
    RUN,
    code_files,
    code_hash,
    git_state,
    reachable,
)
from bitrank.spec.rules import FixedRank
from bitrank.tracking import run_state

LIBRARIES = (
    "bitrank_data",
    "bitrank_quant",
    "bitrank_adapters",
    "bitrank_trainer",
    "bitrank_planner",
    "bitrank_analysis",
)
_IMPORT = "from bitrank.spec.provenance import code_hash, shared_code"
_PRINT_CODE = f"{_IMPORT}\nprint(shared_code(), code_hash('bitrank.sensitivity.measure'))"


@pytest.fixture
def rules(tmp_path, monkeypatch) -> Path:
    """A copy of ``rules.py`` that a test may change."""
    copy = tmp_path / "rules.py"
    copy.write_text(reachable("bitrank.spec.rules")["bitrank.spec.rules"].read_text())
    monkeypatch.setattr(provenance, "_files_hash", lambda modules: "shared")
    file_of = provenance._file_of
    monkeypatch.setattr(
        provenance,
        "_file_of",
        lambda module: copy if module == "bitrank.spec.rules" else file_of(module),
    )
    yield copy
    provenance._rules_code.cache_clear()


def code_of(name: str) -> str:
    provenance._rules_code.cache_clear()
    return run_state.code_of(make_spec(PROFILES["smoke"], name, "toy_sentences"))


def test_a_new_rule_does_not_change_the_hashes_of_others(rules) -> None:
    before = {name: code_of(name) for name in CONFIGS}
    rules.write_text(rules.read_text() + "\n\nclass Another:\n    pass\n")
    assert {name: code_of(name) for name in CONFIGS} == before


def test_a_changed_rule_makes_only_its_arms_stale(rules) -> None:
    before = {name: code_of(name) for name in CONFIGS}
    text = rules.read_text()
    rules.write_text(text.replace("class ByRole:", "class ByRole:\n    changed = True\n"))
    assert rules.read_text() != text
    assert [name for name in CONFIGS if code_of(name) != before[name]] == ["Joint-3"]


def test_a_changed_rule_of_the_budget_makes_the_planned_arm_stale(rules) -> None:
    before = {name: code_of(name) for name in CONFIGS}
    text = rules.read_text()
    rules.write_text(text.replace("class FixedRank(Lora):", "class FixedRank(Lora):\n    changed = True\n"))
    assert rules.read_text() != text
    changed = {name for name in CONFIGS if code_of(name) != before[name]}
    of_fixed_rank = {
        name
        for name, arm in CONFIGS.items()
        if isinstance(arm, PlannedArm) or isinstance(arm.rank, FixedRank)
    }
    assert changed == of_fixed_rank
    assert {"B-Q4", "Plan-Q4"} <= changed < set(CONFIGS)


def test_a_rule_outside_the_rules_file_is_refused_with_the_remedy() -> None:
    with pytest.raises(UserError, match=r"defines no Vanished.*Move the class into rules\.py"):
        code_hash(RUN, rules=frozenset({"GivenRanks", "Vanished"}))


def test_a_module_that_does_not_exist_has_no_hash() -> None:
    with pytest.raises(LookupError, match="moved_away"):
        code_hash(RUN, "bitrank.run.moved_away")
    with pytest.raises(LookupError, match="bitrank_moved"):
        code_hash("bitrank_moved.measure")


def hashed_names() -> set[str]:
    """String arguments in the orchestrator of ``code_hash`` as a string."""
    root = Path(find_spec("bitrank").origin).parent
    calls = [
        node
        for path in root.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("code_hash")
    ]
    return {word.value for call in calls for word in call.args if isinstance(word, ast.Constant)}


def test_every_module_whose_code_is_hashed_exists() -> None:
    names = hashed_names()
    assert {"bitrank.sensitivity.measure", "bitrank.planning.interactions"} <= names
    assert all(len(code_hash(name)) == 64 for name in names)


def imported_by(path: Path) -> set[str]:
    """Modules of this project that a file imports anywhere, except for type checking.

    Written independently of the tested code.
    """
    names: set[str] = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for block in ast.walk(tree):
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING":
            block.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports are not followed here"
            names |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name for name in names if name.partition(".")[0].startswith("bitrank")}


def files_reachable_from(path: Path) -> set[Path]:
    roots = {name: Path(find_spec(name).origin).parent for name in ("bitrank", *LIBRARIES)}
    found, waiting = set[Path](), [path]
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found.add(path)
        for name in imported_by(path):
            top, *parts = name.split(".")
            for depth in range(len(parts) + 1):
                place = roots[top].joinpath(*parts[:depth])
                waiting += [
                    file for file in (place / "__init__.py", place.with_suffix(".py")) if file.is_file()
                ]
    return found


def test_every_file_a_run_can_import_is_hashed_or_listed_as_harmless() -> None:
    main = reachable(RUN)[RUN]
    listed = {reachable(name)[name] for name in CHANGES_NO_NUMBER}
    forgotten = files_reachable_from(main) - set(code_files(RUN).values()) - listed
    assert not forgotten, "hash these files, or list their modules in CHANGES_NO_NUMBER with a reason"


def test_every_file_that_planning_can_import_is_hashed_for_planned_arms() -> None:
    root = reachable(PLANNING)[PLANNING]
    listed = {reachable(name)[name] for name in CHANGES_NO_NUMBER}
    hashed = set(code_files(RUN, PLANNING).values())
    assert not files_reachable_from(root) - hashed - listed
    assert {
        reachable(PLANNING)[name] for name in ("bitrank.sensitivity.measure", "bitrank.planning.costs")
    } <= hashed
    assert code_hash(RUN, PLANNING) not in {code_hash(RUN), code_hash(PLANNING)}


def test_every_module_loaded_by_a_run_is_hashed_or_listed_as_harmless() -> None:
    ours = f"import sys, {RUN}\nfor name in list(sys.modules):\n    if name.startswith('bitrank'):"
    ours += " print(sys.modules[name].__file__)"
    loaded = subprocess.run(
        [sys.executable, "-c", ours], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    listed = {reachable(name)[name] for name in CHANGES_NO_NUMBER}
    assert len(loaded) > 50
    assert {Path(file) for file in loaded} <= set(code_files(RUN).values()) | listed


def test_modules_listed_as_harmless_are_reachable_and_have_a_reason() -> None:
    assert reachable(RUN).keys() >= CHANGES_NO_NUMBER.keys()
    assert all(len(reason.split()) > 2 for reason in CHANGES_NO_NUMBER.values())


def test_the_head_fit_and_c_sources_are_hashed() -> None:
    files = code_files(RUN)
    assert "bitrank.sensitivity.fit_head" in files, "it decides the Fisher weights of every lq-lora start"
    assert {path.suffix for path in files.values()} == {".py", ".c", ".h"}


@pytest.fixture
def checkout(tmp_path: Path) -> Callable[[], list[str]]:
    """A copy of the sources, and its hashes: of the code of runs, and of the code that measures."""
    for name in ("bitrank", *LIBRARIES):
        shutil.copytree(Path(find_spec(name).origin).parent, tmp_path / "src" / name)

    def hashes() -> list[str]:
        environment = {**os.environ, "PYTHONPATH": str(tmp_path / "src")}
        done = subprocess.run(
            [sys.executable, "-c", _PRINT_CODE], env=environment, capture_output=True, text=True, check=True
        )
        return done.stdout.split()

    return hashes


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("bitrank/sensitivity/fit_head.py", [True, True]),  # reached by a lazy start only
        ("bitrank_quant/kernels/decode.c", [True, True]),
        ("bitrank/run/record.py", [True, False]),  # a run computes figures with it, a measurement does not
        ("bitrank/process/advice.py", [False, False]),
        ("bitrank/cli/main.py", [False, False]),
        ("bitrank_analysis/study.py", [False, False]),
    ],
)
def test_an_edit_changes_the_hashes_of_the_code_that_uses_it(
    file: str, expected: list[bool], checkout: Callable[[], list[str]], tmp_path: Path
) -> None:
    before = checkout()
    path = tmp_path / "src" / file
    path.write_text(
        path.read_text() + "\n// \n" if path.suffix == ".c" else path.read_text() + "\n# edited\n"
    )
    assert [old != new for old, new in zip(before, checkout(), strict=True)] == expected


def test_a_new_module_in_a_new_folder_is_hashed_once_a_run_imports_it(
    checkout: Callable[[], list[str]], tmp_path: Path
) -> None:
    folder = tmp_path / "src" / "bitrank" / "deeper"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "new.py").write_text("A = 1\n")
    before = checkout()
    heads = tmp_path / "src" / "bitrank" / "sensitivity" / "fit_head.py"
    heads.write_text(heads.read_text() + "\n\ndef later() -> None:\n    from bitrank.deeper import new\n")
    imported = checkout()
    (folder / "new.py").write_text("A = 2\n")
    edited = checkout()
    assert len({before[0], imported[0], edited[0]}) == 3 and len({before[1], imported[1], edited[1]}) == 3


def test_hashes_do_not_depend_on_where_the_code_is_installed(checkout: Callable[[], list[str]]) -> None:
    assert checkout()[0] == provenance.shared_code()


@pytest.mark.parametrize(
    ("commit", "tags"),
    [
        ("", {}),
        ("4f1c", {"git_commit": "4f1c", "dirty": "false", "mlflow.source.git.commit": "4f1c"}),
        ("4f1c-dirty", {"git_commit": "4f1c", "dirty": "true", "mlflow.source.git.commit": "4f1c"}),
    ],
)
def test_the_commit_of_an_image_comes_from_its_environment(
    monkeypatch: pytest.MonkeyPatch, commit: str, tags: dict[str, str]
) -> None:
    """An image has neither git nor a checkout."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("BITRANK_COMMIT", commit)
    assert git_state.__wrapped__() == tags
