"""Hooks of mkdocs: add the generated reference pages, and convert Sphinx roles of docstrings.

Reference pages are made from the code at build time, so they cannot disagree with it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cli_page import cli_page
from mkdocs.structure.files import File, Files
from modules_page import modules_page
from names_page import names_page
from spec_page import spec_page

GENERATED: dict[str, Callable[[], str]] = {
    "reference/cli.md": cli_page,
    "reference/spec.md": spec_page,
    "reference/names.md": names_page,
    "reference/api/bitrank.md": modules_page,
}
# Docstrings use Sphinx roles such as :class:`~bitrank.errors.UserError`; print the last name as code.
_ROLE = re.compile(r":(?:class|func|meth|mod|data|attr|exc):<code>~?(?:[\w.]+\.)?(\w+)</code>")


# Reading the registries imports bitsandbytes, which warns about optional kernels.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def on_config(config: Any) -> Any:
    """Replace folders in the navigation by their pages, ``index.md`` first; new pages need no entry."""
    _expand(config.nav, Path(config.docs_dir))
    return config


def _expand(entries: list[Any], root: Path) -> None:
    for entry in entries:
        for title, value in entry.items() if isinstance(entry, dict) else ():
            if isinstance(value, list):
                _expand(value, root)
            elif (root / value).is_dir():
                pages = sorted(path.relative_to(root).as_posix() for path in (root / value).glob("*.md"))
                entry[title] = sorted(pages, key=lambda page: not page.endswith("/index.md"))


def on_files(files: Files, config: Any) -> Files:
    """Add every page of :data:`GENERATED`."""
    for path, make in GENERATED.items():
        files.append(File.generated(config, path, content=make()))
    return files


def on_page_content(html: str, **_: Any) -> str:
    """Replace Sphinx roles, which Markdown does not support, by plain code."""
    return _ROLE.sub(r"<code>\1</code>", html)
