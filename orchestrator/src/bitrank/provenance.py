"""What code made a result: the git commit, and a hash of the source files that decide numbers."""

from __future__ import annotations

import hashlib
import subprocess
from functools import cache
from importlib.util import find_spec
from pathlib import Path

_DECIDES = ("bitrank_data", "bitrank_quant", "bitrank_adapters", "bitrank_trainer")
_OWN = ("road.py", "rules.py", "models.py", "material.py", "schedule.py", "tiny.py")


@cache
def code_id() -> str:
    """Twelve hex digits over every source file that can change a number; results made by other code are *stale*."""
    digest = hashlib.sha256()
    for package in _DECIDES:
        found = find_spec(package)
        assert found is not None and found.origin is not None
        for path in sorted(Path(found.origin).parent.rglob("*.py")):
            digest.update(path.read_bytes())
    for name in _OWN:
        digest.update((Path(__file__).parent / name).read_bytes())
    return digest.hexdigest()[:12]


@cache
def git_state() -> dict[str, str]:
    """Tags ``git_commit`` and ``dirty`` when this code runs from a checkout; nothing otherwise."""
    here = Path(__file__).parent
    commit = _git(here, "rev-parse", "HEAD")
    if not commit:
        return {}
    dirty = bool(_git(here, "status", "--porcelain", "--untracked-files=no"))
    return {"git_commit": commit, "dirty": str(dirty).lower(), "mlflow.source.git.commit": commit}


def _git(folder: Path, *words: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
