"""A figure as files: SVG and PNG with its title, PDF without (a paper has captions), and Vega-Lite JSON."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

import altair
import vl_convert

from bitrank_analysis.figures.theme import Figure, config

# Altair writes specs of one Vega-Lite version ("v6.4.1"); vl-convert names it without the patch number.
VEGA_LITE = altair.SCHEMA_VERSION.removeprefix("v").rpartition(".")[0]
_LETTERS = {False: 56, True: 96}  # of a title line, over a chart of one column and of two


def spec(figure: Figure, titled: bool = True) -> dict[str, Any]:
    """The figure as Vega-Lite with the theme in it. The title is broken into lines: Vega draws them as they are given."""
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
    """The figure as Vega-Lite without title and theme, for a page that has its own of both."""
    plain: dict[str, Any] = figure.chart.to_dict()
    plain.pop("config", None)
    return plain


def save(figure: Figure, folder: Path) -> list[Path]:
    """Write ``<name>.svg .pdf .png .json`` into ``folder``; the paths. The PDF carries the fonts that it uses."""
    folder.mkdir(parents=True, exist_ok=True)
    titled = spec(figure)
    contents: dict[str, bytes] = {
        "svg": vl_convert.vegalite_to_svg(titled, vl_version=VEGA_LITE).encode(),
        "png": vl_convert.vegalite_to_png(titled, vl_version=VEGA_LITE, scale=2),
        "pdf": vl_convert.vegalite_to_pdf(spec(figure, titled=False), vl_version=VEGA_LITE),
        "json": json.dumps(titled, indent=1).encode(),
    }
    paths = [folder / f"{figure.name}.{kind}" for kind in contents]
    for path, content in zip(paths, contents.values(), strict=True):
        path.write_bytes(content)
    return paths
