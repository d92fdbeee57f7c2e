"""A byte budget in words: ``20MB``, ``4.25bits`` (stored bits per base parameter, adapters counted), ``=B-Q4`` (a config's bytes)."""

from __future__ import annotations

import re

from bitrank.configs import CONFIGS, find_config
from bitrank.errors import UserError, unknown
from bitrank.planning.sizes import Sizes
from bitrank.specs import parse_bytes


def parse_budget(text: str, sizes: Sizes) -> int:
    """The bytes that ``text`` stands for. Raises :class:`UserError`."""
    if text.startswith("="):
        name = text[1:]
        if name not in CONFIGS:
            raise unknown("config", name, CONFIGS, "; a budget like =B-Q4 takes the bytes of a config")
        return sizes.of_config(find_config(name))
    if match := re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*bits?\s*", text):
        return int(float(match[1]) * sizes.parameters / 8)
    try:
        return parse_bytes(text)
    except UserError:
        raise UserError(f"expected a budget such as 20MB, 4.25bits or =B-Q4, got {text!r}") from None
