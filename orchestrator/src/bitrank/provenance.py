"""What code made a result: the git commit, and a hash of the source files that decide numbers."""

from __future__ import annotations

import ast
import hashlib
import os
import subprocess
from functools import cache
from importlib.util import find_spec
from pathlib import Path

_DECIDES = ("bitrank_data", "bitrank_quant", "bitrank_adapters", "bitrank_trainer")
_OWN = ("road.py", "models.py", "weights.py", "checkpoint.py", "completeness.py", "labels.py",
        "stored_tensors.py", "material.py", "measuring.py", "memory.py", "plans.py", "samples.py", "schedule.py", "starts.py",
        "tiny.py")  # fmt: skip


def code_id(*rules: object) -> str:
    """Twelve hex digits over every source line that can change a number of a run with ``rules``; results of other code are *stale*.

    Of the rules only those of this arm count, so that a config added beside it leaves its results as they are.
    """
    return hashlib.sha256((shared_code() + _rules_code(frozenset(type(rule).__name__ for rule in rules))).encode()).hexdigest()[:12]


@cache
def _rules_code(names: frozenset[str]) -> str:
    """The text of ``rules.py`` without the classes that the classes ``names`` do not use."""
    text = (Path(__file__).parent / "rules.py").read_text(encoding="utf-8")
    body = ast.parse(text).body
    classes = {node.name: node for node in body if isinstance(node, ast.ClassDef)}
    used, found = set[str](), set(names)
    while found - used:
        used |= found
        found = {node.id for name in used if name in classes for node in ast.walk(classes[name]) if isinstance(node, ast.Name)}
    return "\n".join(ast.get_source_segment(text, node) or "" for node in body if getattr(node, "name", "") not in classes.keys() - used)


@cache
def shared_code() -> str:
    """The digest of what all arms share."""
    digest = hashlib.sha256()
    for package in _DECIDES:
        found = find_spec(package)
        assert found is not None and found.origin is not None
        for path in sorted(Path(found.origin).parent.rglob("*.*")):
            if path.suffix in {".py", ".c", ".h"}:
                digest.update(path.read_bytes())
    for name in _OWN:
        digest.update((Path(__file__).parent / name).read_bytes())
    return digest.hexdigest()


@cache
def git_state() -> dict[str, str]:
    """Tags ``git_commit`` and ``dirty`` when this code runs from a checkout, or from an image that was told its own; else nothing."""
    here = Path(__file__).parent
    commit = _git(here, "rev-parse", "HEAD")
    dirty = bool(commit and _git(here, "status", "--porcelain", "--untracked-files=no"))
    if not commit:
        commit, _, changed = os.environ.get("BITRANK_COMMIT", "").partition("-")  # <commit> or <commit>-dirty
        dirty = bool(changed)
    if not commit:
        return {}
    return {"git_commit": commit, "dirty": str(dirty).lower(), "mlflow.source.git.commit": commit}


def _git(folder: Path, *words: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
