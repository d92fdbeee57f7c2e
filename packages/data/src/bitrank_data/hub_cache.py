"""Commit of a Hugging Face repository in the local cache; works without network access."""

from __future__ import annotations

from pathlib import Path
from typing import Literal


def cached_commit(kind: Literal["models", "datasets"], repository: str) -> str | None:
    """Commit of the copy that an offline loader would use; None if the local hub cache has none.

    This is the commit of ``main`` at the last contact with the hub, otherwise the newest copy.
    """
    from huggingface_hub.constants import HF_HUB_CACHE

    folder = Path(HF_HUB_CACHE) / f"{kind}--{repository.replace('/', '--')}"
    main = folder / "refs" / "main"
    if main.is_file():
        return main.read_text(encoding="utf-8").strip()
    copies = sorted((folder / "snapshots").glob("*"), key=lambda path: path.stat().st_mtime)
    return copies[-1].name if copies else None
