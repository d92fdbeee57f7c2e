"""Which commit of a repository on the Hugging Face hub this machine has a copy of. The hub is not asked."""

from __future__ import annotations

from pathlib import Path
from typing import Literal


def cached_commit(kind: Literal["models", "datasets"], repository: str) -> str | None:
    """The commit of the copy that a loader would use without the hub; None when the hub's cache on this
    machine has none.

    That is the commit which the branch ``main`` had when the hub was last asked, else the newest copy.
    """
    from huggingface_hub.constants import HF_HUB_CACHE

    folder = Path(HF_HUB_CACHE) / f"{kind}--{repository.replace('/', '--')}"
    main = folder / "refs" / "main"
    if main.is_file():
        return main.read_text(encoding="utf-8").strip()
    copies = sorted((folder / "snapshots").glob("*"), key=lambda path: path.stat().st_mtime)
    return copies[-1].name if copies else None
