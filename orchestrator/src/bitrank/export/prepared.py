"""An export between its audit and its files: it is written only after the audit is accepted.

Files go to a temporary folder beside the target, which is renamed at the end: an export that fails, or is
interrupted, leaves nothing behind under the target's name.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from bitrank.errors import UserError
from bitrank.export.audit import Audit

AUDIT = "audit.json"
_RESERVE = 2**20  # bytes for the tokenizer, the configuration and the audit


@dataclass(frozen=True)
class Options:
    """Options of an export.

    ``target`` is its name. ``adapter_apart``: the adapter stays apart from its base. ``quantizer`` chooses
    the codes of matrices that change.
    """

    target: str
    adapter_apart: bool = False
    quantizer: str = "gptq"


@dataclass(frozen=True)
class Prepared:
    """An export in memory: audit, forecast bytes of its weight files, and the function that writes it.

    ``write`` gets an empty folder. ``notes`` are sentences for the user.
    """

    audit: Audit
    nbytes: int
    write: Callable[[Path], None]
    notes: list[str] = field(default_factory=list)


def check_loss(audit: Audit, max_loss: float, advice: str) -> None:
    """Raise :class:`UserError` with ``advice`` if the export adds more than ``max_loss`` nats, or NaN."""
    added = audit.added_loss
    if not added <= max_loss:  # true for NaN too
        raise UserError(
            f"exporting to {audit.target} adds {added:.4f} nats to the validation loss, more than --max-loss "
            f"{max_loss:g}: nothing was written. {advice}, increase --max-loss, or give --force"
        )


def check_creatable(out: Path) -> None:
    """Raise :class:`UserError` if the folder ``out`` exists, or cannot be made where it is."""
    if os.path.lexists(out):
        raise UserError(f"{out} exists already; give --out a folder that does not")
    place = _existing_parent(out)
    if not place.is_dir():
        raise UserError(
            f"{place} is no folder, so --out cannot be the folder {out} in it; give another folder"
        )
    if not os.access(place, os.W_OK | os.X_OK):
        raise UserError(f"{place} is not writable, so --out cannot be the folder {out}; give another folder")


def _existing_parent(out: Path) -> Path:
    """The nearest folder around ``out`` that exists."""
    return next(folder for folder in (out.parent, *out.parent.parents) if os.path.lexists(folder))


def check_space(out: Path, nbytes: int) -> None:
    """Raise :class:`UserError` if the disk of ``out`` has less than ``nbytes`` free for the files."""
    place = _existing_parent(out)
    free, needed = shutil.disk_usage(place).free, nbytes + _RESERVE
    if free < needed:
        raise UserError(
            f"{place} has {free / 2**20:,.0f} MiB free, but the export takes about "
            f"{needed / 2**20:,.0f} MiB: nothing was written. Free space, or give --out a folder on another "
            "disk"
        )


def write_export(prepared: Prepared, out: Path) -> dict[str, int]:
    """Write ``prepared`` and its audit to the new folder ``out``; return the bytes of each file by its name.

    Raises :class:`UserError` if ``out`` exists or cannot be made, or its disk is too small. On any error
    the temporary folder is removed.
    """
    check_creatable(out)
    check_space(out, prepared.nbytes)
    unfinished = out.parent / f".{out.name}.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)  # of an export that was killed
    unfinished.mkdir(parents=True)
    try:
        prepared.write(unfinished)
        files = _sizes(unfinished)
        written = {**prepared.audit.as_data(), "notes": prepared.notes, "files": files}
        (unfinished / AUDIT).write_text(json.dumps(written, indent=1))
        unfinished.rename(out)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    return files


def _sizes(folder: Path) -> dict[str, int]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
