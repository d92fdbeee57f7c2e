"""Find an object of the code by the places it may be in."""

from __future__ import annotations

import importlib
from typing import Any


def find(*places: str) -> Any:
    """The first of ``places`` (``module:attribute``) that exists. Raises :class:`LookupError` when none does.

    Pages name a module's place and its former one while files move, so that the site builds before and after.
    """
    for place in places:
        module_name, _, attribute = place.partition(":")
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name is None or not module_name.startswith(error.name):
                raise  # the module is there, and something that it imports is not
            continue
        if hasattr(module, attribute):
            return getattr(module, attribute)
    raise LookupError(f"expected one of {', '.join(places)}, found none; correct the places in tools/docs")
