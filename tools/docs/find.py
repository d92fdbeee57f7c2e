"""Find an object by its module and name, so that pages import the project only while the site is built."""

from __future__ import annotations

import importlib
from typing import Any


def find(place: str) -> Any:
    """The object at ``place`` (``module:attribute``). Raises :class:`LookupError` if it does not exist."""
    module_name, _, attribute = place.partition(":")
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except (ModuleNotFoundError, AttributeError) as error:
        raise LookupError(f"{place} does not exist; correct it in tools/docs") from error
