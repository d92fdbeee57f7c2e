"""Provenance of results: the git commit, and a hash of the source files that can change a number.

The files are found by following imports, lazy ones included, so new modules of a run are hashed without a
list. All source files of the libraries (``bitrank_quant``, …) are hashed, C sources included.
:data:`CHANGES_NO_NUMBER` lists the exceptions. Caches of measurements use the same hash, over the modules
that measure.
"""

from __future__ import annotations

import ast
import hashlib
import os
import subprocess
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from bitrank.errors import UserError

RUN = "bitrank.run.train_run"  # a run's code is every module that this one imports, directly or not
PLANNING = "bitrank.planning.planned_arms"  # the code that makes the plan of a planned arm
_OWN = "bitrank"
_RULES = ("bitrank.spec.rules", "bitrank.spec.pruned_rules", "bitrank.spec.system_rules")
_SOURCES = {".py", ".c", ".h"}

# Imported modules that cannot change a number of a run, with the reason. All others are hashed.
CHANGES_NO_NUMBER = {
    "bitrank": "the version, and the names that other programs import",
    "bitrank.spec.configs": "its result is the arm, which is part of the spec and checked before a run",
    "bitrank.spec.config": "an arm, which is part of the spec",
    "bitrank.spec.systems": "arms, each of which is part of the spec of its runs",
    "bitrank.spec.fields": "types and limits of fields, which change no value",
    "bitrank.spec.validation": "rejects values, and changes none",
    "bitrank.spec.plan_file": "its values are the arm, which is part of the spec",
    "bitrank.errors": "the wording of errors",
    "bitrank.spec.inputs": "computes digests of data and weights, and stops a run whose inputs changed",
    "bitrank.run.notices": "the wording of notices",
    "bitrank.spec.provenance": "hashes the code, and runs none of it",
    "bitrank.spec.rules": "code_id hashes single rules, so that a new rule does not outdate other results",
    "bitrank.spec.named_rank_rules": "its rules are the arm, which is part of the spec",
    "bitrank.spec.pruned_rules": "code_id hashes single rules, as those of bitrank.spec.rules",
    "bitrank.spec.system_rules": "code_id hashes single rules, as those of bitrank.spec.rules",
    "bitrank.spec.run_spec": "its values are the spec, and so part of its id",
}


def code_id(*rules: object) -> str:
    """Hash all source files that can change a number of a run with ``rules``, to twelve hex digits.

    Results of other code are *stale*. Of ``rules.py`` only the arm's own rules are hashed, so a new config
    does not outdate the results of others.
    """
    return code_hash(RUN, rules=frozenset(type(rule).__name__ for rule in rules))[:12]


def planned_code_id(*rules: object) -> str:
    """Hash as :func:`code_id` does, with the code that measures and plans, for an arm with a plan request."""
    return code_hash(RUN, PLANNING, rules=frozenset(type(rule).__name__ for rule in rules))[:12]


def shared_code() -> str:
    """The hash of the code that all arms share."""
    return code_hash(RUN)


def code_hash(*modules: str, rules: frozenset[str] = frozenset()) -> str:
    """Hash the sources of ``modules`` and all code of this project that they import, directly or not.

    ``rules`` are names of classes of ``rules.py`` to include. The hash depends on names and contents of
    files, and not on their location or order. Raises :class:`LookupError` for a module that does not exist,
    whose hash would not depend on any code, and :class:`UserError` for a rule outside ``rules.py``.
    """
    shared = _files_hash(modules)
    return hashlib.sha256((shared + _rules_code(rules)).encode()).hexdigest() if rules else shared


@cache
def _files_hash(modules: tuple[str, ...]) -> str:
    digest = hashlib.sha256()
    for name, path in sorted(code_files(*modules).items()):
        digest.update(f"{name}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def code_files(*modules: str) -> dict[str, Path]:
    """Files of the :func:`code_hash` of ``modules``, by a name that is independent of the installation."""
    files: dict[str, Path] = {}
    for name, path in reachable(*modules).items():
        package = name.partition(".")[0]
        if package != _OWN:
            files |= _whole_package(package)
        elif name not in CHANGES_NO_NUMBER:
            files[name] = path
    return files


def reachable(*modules: str) -> dict[str, Path]:
    """Files of ``modules`` and of the modules of this project that they import, directly or not.

    Imports in libraries are not followed: libraries import no sibling and nothing of the orchestrator. Raises
    :class:`LookupError` if one of ``modules`` does not exist; imported names that are not modules (functions)
    are skipped.
    """
    for name in modules:
        if _file_of(name) is None:
            raise LookupError(f"there is no module {name!r}: give the module that contains its code now")
    found: dict[str, Path] = {}
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        path = _file_of(name)
        if name in found or path is None:
            continue
        found[name] = path
        package = name.rpartition(".")[0]
        waiting += [package] if package else []  # importing a module imports its package first
        # The top package is not followed: it imports the Python interface, which runs do not use.
        if name.startswith(f"{_OWN}."):
            waiting += _imports(name, path)
    return found


def _imports(name: str, path: Path) -> list[str]:
    """Modules of this project that ``name`` imports anywhere, except under ``TYPE_CHECKING``."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    imported = []
    for node in _executed(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            imported += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            imported += [source, *(f"{source}.{alias.name}" for alias in node.names)]
    return [module for module in imported if module.split(".")[0].startswith(_OWN)]


def _executed(node: ast.AST) -> Iterator[ast.AST]:
    """Yield ``node`` and its descendants, without blocks under ``if TYPE_CHECKING``."""
    yield node
    for child in ast.iter_child_nodes(node):
        if (
            isinstance(child, ast.If)
            and isinstance(child.test, ast.Name)
            and child.test.id == "TYPE_CHECKING"
        ):
            for other in child.orelse:
                yield from _executed(other)
        else:
            yield from _executed(child)


def _file_of(module: str) -> Path | None:
    """Find the source file of ``module`` without importing it; None if it is not a module."""
    top, *parts = module.split(".")
    root = _root(top)
    if root is None:
        return None
    path = root.joinpath(*parts)
    candidates = (path / "__init__.py", path.with_suffix(".py"))
    return next((candidate for candidate in candidates if candidate.is_file()), None)


@cache
def _root(package: str) -> Path | None:
    found = find_spec(package)
    if found is None or found.origin is None:
        return None
    return Path(found.origin).parent


@cache
def _whole_package(package: str) -> dict[str, Path]:
    """All source files of a package, by their path relative to the package."""
    root = _root(package)
    assert root is not None, f"{package} was imported by code that exists"
    paths = [path for path in root.rglob("*") if path.suffix in _SOURCES]
    return {f"{package}/{path.relative_to(root).as_posix()}": path for path in paths}


@cache
def _rules_code(names: frozenset[str]) -> str:
    """Source text of the modules of rules without the classes that the classes ``names`` do not use."""
    paths = [_file_of(module) for module in _RULES]
    texts = [path.read_text(encoding="utf-8") for path in paths if path is not None]
    assert len(texts) == len(_RULES), "the rules moved: name their modules here"
    bodies = [ast.parse(text).body for text in texts]
    classes = {node.name: node for body in bodies for node in body if isinstance(node, ast.ClassDef)}
    if missing := sorted(names - classes.keys()):
        files = " or ".join(f"{module.rpartition('.')[2]}.py" for module in _RULES)
        raise UserError(
            f"{files} defines no {', '.join(missing)}, and a rule defined elsewhere is not hashed: an "
            f"edit of it would go unnoticed. Move the class into {files}"
        )
    used, found = set[str](), set(names)
    while found - used:
        used |= found
        found = {
            node.id
            for name in used
            if name in classes
            for node in ast.walk(classes[name])
            if isinstance(node, ast.Name)
        }
    kept = [
        ast.get_source_segment(text, node) or ""
        for text, body in zip(texts, bodies, strict=True)
        for node in body
        if getattr(node, "name", "") not in classes.keys() - used
    ]
    return "\n".join(kept)


@cache
def git_state() -> dict[str, str]:
    """Tags ``git_commit`` and ``dirty``, from the checkout or the variable ``BITRANK_COMMIT`` of an image.

    A package that is installed inside another repository, such as in its ``.venv``, is no checkout.
    """
    here = Path(__file__).parent
    is_checkout = _git(here, "ls-files", "--error-unmatch", Path(__file__).name)
    commit = _git(here, "rev-parse", "HEAD") if is_checkout else ""
    dirty = bool(commit and _git(here, "status", "--porcelain", "--untracked-files=no"))
    if not commit:
        commit, _, changed = os.environ.get("BITRANK_COMMIT", "").partition("-")  # <commit> or <commit>-dirty
        dirty = bool(changed)
    if not commit:
        return {}
    return {"git_commit": commit, "dirty": str(dirty).lower(), "mlflow.source.git.commit": commit}


def _git(folder: Path, *arguments: str) -> str:
    # Of a hook or another tool, these variables name another repository.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=10, env=environment
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
