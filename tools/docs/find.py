"""Find an object that may have moved between modules."""

from __future__ import annotations

import importlib
from typing import Any


def find(*places: str) -> Any:
    """The first of ``places`` (``module:attribute``) that exists. Raises :class:`LookupError` if none does.

    Pages list both the new and the former module of a moved object, so that the site builds with either.
    """
    for place in places:
        module_name, _, attribute = place.partition(":")
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name is None or not module_name.startswith(error.name):
                raise  # the module exists, but one of its imports does not
            continue
        if hasattr(module, attribute):
            return getattr(module, attribute)
    raise LookupError(f"expected one of {', '.join(places)}, found none; correct the places in tools/docs")
