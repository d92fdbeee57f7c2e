"""What ``bitrank plan --save`` can write, checked before anything is measured."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from bitrank.cli.plan_page import is_plan_page, page_path
from bitrank.errors import UserError
from bitrank.spec.make_spec import name_of_plan

_CURVE_FILES = ("curve.json", "curve.html", "curve.svg", "curve.png")


def check_plan_file(path: Path) -> None:
    """Raise :class:`UserError` if ``path`` cannot be written, or has a name that no run can use.

    So does a file at ``path``, or at that of its page, which is not an earlier plan or page.
    """
    if path.is_dir():
        raise UserError(
            f"cannot write the plan to {path}: it is a folder; give a file with --save, such as "
            f"{path / 'plan.json'}"
        )
    name_of_plan(path)
    try:
        _check_replaceable(path, _is_plan)
        _check_replaceable(page_path(path), is_plan_page)
        _check_writable(page_path(path))  # its name is at least as long as that of the plan
    except OSError as error:
        raise UserError(
            f"cannot write the plan to {path}: {error.strerror}; give another path with --save"
        ) from error


def _check_replaceable(path: Path, is_earlier: Callable[[Path], bool]) -> None:
    if path.exists() and path.stat().st_size and not is_earlier(path):
        raise UserError(
            f"expected a new file or an earlier plan for --save, got {path}, which is something else and "
            "would be replaced; give another name"
        )


def _is_plan(path: Path) -> bool:
    return _has_any(path, "precision", "ranks")


def _has_any(path: Path, *keys: str) -> bool:
    """Whether the file at ``path`` is a JSON object with one of ``keys``; False without a file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return False
    return isinstance(content, dict) and not content.keys().isdisjoint(keys)


def make_plans_folder(folder: Path, plans: Iterable[str]) -> None:
    """Make the folder of the files ``plans`` of several budgets.

    Raises :class:`UserError` if it cannot be written, or has files of something else with the names of the
    curve or of ``plans``.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        taken = [place.name for place in map(folder.joinpath, _CURVE_FILES) if place.exists()]
        if taken and not _has_any(folder / "curve.json", "points"):
            raise UserError(
                f"expected a folder without {taken[0]}, or one with earlier plans, for --save, got {folder}, "
                "where it is something else and would be replaced; give another folder"
            )
        for name in plans:
            _check_replaceable(folder / name, _is_plan)
        _check_writable(folder / "curve.json")
    except OSError as error:
        raise UserError(
            f"cannot write plans to {folder}: {error.strerror}; with --budgets, --save takes a folder"
        ) from error


def _check_writable(path: Path) -> None:
    """Write the temporary file of ``path`` and remove it: only this finds every reason of a closed disk.

    A file of another name could be too long where that of the plan is not.
    """
    trial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        trial.write_bytes(b"")
    finally:
        trial.unlink(missing_ok=True)
