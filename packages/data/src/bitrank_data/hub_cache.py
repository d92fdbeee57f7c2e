"""Hugging Face repositories in the local cache of the hub: commits, and files that are downloaded visibly."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

Kind = Literal["models", "datasets"]


def cached_commit(kind: Kind, repository: str) -> str | None:
    """Commit of the copy that an offline loader would use; None if the local hub cache has none.

    This is the commit of ``main`` at the last contact with the hub, otherwise the newest copy.
    """
    folder = _folder(kind, repository)
    main = folder / "refs" / "main"
    if main.is_file():
        return main.read_text(encoding="utf-8").strip()
    copies = sorted((folder / "snapshots").glob("*"), key=lambda path: path.stat().st_mtime)
    return copies[-1].name if copies else None


def hub_snapshot(kind: Kind, repository: str, commit: str | None, patterns: Sequence[str]) -> Path:
    """Folder of the files of ``repository`` that match ``patterns``; files that are absent are downloaded.

    ``commit`` is that of ``main`` by default. A download is announced by a line on standard error, and its
    progress is shown on a terminal. Raises :class:`OSError` or :class:`ValueError` as the hub's library does.
    """
    from huggingface_hub import snapshot_download
    from tqdm.auto import tqdm

    class TerminalBar(tqdm):  # type: ignore[type-arg]  # tqdm is generic in its stubs alone
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "disable": None})  # None: disabled in a pipe

    known = commit or cached_commit(kind, repository)
    if known is None or not (_folder(kind, repository) / "snapshots" / known).is_dir():
        print(f"downloading {repository} from the Hugging Face hub", file=sys.stderr, flush=True)
    return Path(
        snapshot_download(
            repository,
            repo_type=kind.removesuffix("s"),
            revision=commit,
            allow_patterns=list(patterns),
            tqdm_class=TerminalBar,
        )
    )


def _folder(kind: Kind, repository: str) -> Path:
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE) / f"{kind}--{repository.replace('/', '--')}"
