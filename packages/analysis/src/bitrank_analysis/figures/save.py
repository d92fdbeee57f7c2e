"""Export of figures: SVG and PNG with title, PDF without (a paper has captions), and Vega-Lite JSON."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import altair
import vl_convert

from bitrank_analysis.figures.theme import Figure, config
from bitrank_analysis.files import write_atomically

# Altair gives its Vega-Lite version as "v6.4.1"; vl-convert expects it without "v" and patch number.
VEGA_LITE = altair.SCHEMA_VERSION.removeprefix("v").rpartition(".")[0]
_LETTERS = {False: 56, True: 96}  # characters per title line of a chart of one or two columns


def spec(figure: Figure, titled: bool = True) -> dict[str, Any]:
    """The figure as Vega-Lite with the theme.

    The title is wrapped here, because Vega does not wrap text.
    """
    plain = bare_spec(figure)
    if titled:
        width = _LETTERS[figure.wide]
        lines = {
            "text": textwrap.wrap(figure.title, width, break_on_hyphens=False),
            "subtitle": textwrap.wrap(figure.note, width + 12, break_on_hyphens=False),
        }
        plain["title"] = {key: value for key, value in lines.items() if value}
    return {**plain, "config": config()}


def bare_spec(figure: Figure) -> dict[str, Any]:
    """The figure as Vega-Lite without title and theme, for a page that provides both."""
    plain: dict[str, Any] = figure.chart.to_dict()
    plain.pop("config", None)
    return plain


def pdf(figure: Figure) -> bytes:
    """The figure as PDF without its title, with embedded fonts."""
    return vl_convert.vegalite_to_pdf(spec(figure, titled=False), vl_version=VEGA_LITE)


def svg(figure: Figure) -> bytes:
    """The figure as SVG, the same bytes for the same figure: Vega counts gradients over the whole process."""
    text = vl_convert.vegalite_to_svg(spec(figure), vl_version=VEGA_LITE)
    found = list(dict.fromkeys(re.findall(r"gradient_\d+", text)))
    return re.sub(r"gradient_\d+", lambda name: f"gradient_{found.index(name[0])}", text).encode()


_KINDS: dict[str, Callable[[Figure], bytes]] = {
    "svg": svg,
    "png": lambda figure: vl_convert.vegalite_to_png(spec(figure), vl_version=VEGA_LITE, scale=2),
    "pdf": pdf,
    "json": lambda figure: json.dumps(spec(figure), indent=1).encode(),
}


def save(figure: Figure, folder: Path, kinds: Sequence[str] = tuple(_KINDS)) -> list[Path]:
    """Write ``<name>.<kind>`` for each of ``kinds`` into ``folder`` and return the paths.

    The PDF embeds its fonts; ``json`` is Vega-Lite.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{figure.name}.{kind}" for kind in kinds]
    for path, kind in zip(paths, kinds, strict=True):
        write_atomically(path, _KINDS[kind](figure))
    return paths
