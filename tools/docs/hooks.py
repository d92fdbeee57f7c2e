"""Hooks of mkdocs: add the page of the orchestrator's modules, and convert Sphinx roles of docstrings.

The page changes with every docstring, so it is made at build time and not committed; nothing outside the site
links to it. ``write_reference.py`` makes the other generated pages.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from modules_page import modules_page

# Docstrings use Sphinx roles such as :class:`~bitrank.errors.UserError`; print the last name as code.
_ROLE = re.compile(r":(?:class|func|meth|mod|data|attr|exc):<code>~?(?:[\w.]+\.)?(\w+)</code>")


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
    """Add the page of the orchestrator's modules."""
    files.append(File.generated(config, "reference/api/bitrank.md", content=modules_page()))
    return files


def on_page_content(html: str, **_: Any) -> str:
    """Replace Sphinx roles, which Markdown does not support, by plain code."""
    return _ROLE.sub(r"<code>\1</code>", html)
