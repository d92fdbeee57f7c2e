"""Theme of all figures: portable fonts, one colour and one shape per config, colour-blind safe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any

import altair as alt

from bitrank_analysis.evidence import config_order

# Okabe and Ito (2008), "Color Universal Design", without yellow; grey for the full-precision baseline.
STYLE = {
    "B-FP": ("#7a7a7a", "circle"),
    "B-Q4": ("#0072B2", "square"),
    "B-Ada": ("#E69F00", "diamond"),
    "Joint-1": ("#CC79A7", "triangle-up"),
    "Joint-2": ("#009E73", "triangle-down"),
    "Joint-3": ("#D55E00", "cross"),
    "Plan-Q4": ("#7B3294", "triangle-right"),
}
_SPARE = ("#56B4E9", "#8C6BB1", "#8C6D1F", "#4D4D4D", "#117733", "#882255", "#332288", "#44AA99")
# Shapes with an area: points are drawn filled.
_SPARE_SHAPES = (
    "triangle-right",
    "triangle-left",
    "triangle-up",
    "circle",
    "square",
    "diamond",
    "cross",
)
# vl-convert provides the first font; browsers use the others.
FONT = "Liberation Sans, Arial, Helvetica, sans-serif"
# Width of the plotting area in pixels, for one column of a paper.
COLUMN = 300
WIDE = 600


@dataclass(frozen=True)
class Figure:
    """A chart with a ``title`` that states the result and a ``note`` that describes the content.

    ``wide`` figures span two columns of a paper.
    """

    name: str
    title: str
    chart: Any
    note: str = ""
    wide: bool = False


# Offset in pixels between arms at one position, which would otherwise hide each other.
_APART = 11


def side_by_side(places: Mapping[str, float]) -> dict[str, float]:
    """Config → horizontal offset of its mark in pixels.

    Arms within 3 % of the axis are drawn side by side, centred on their position.
    """
    span = max(max(places.values()) - min(places.values()), 1e-9)
    groups: list[list[str]] = []
    for name in sorted(places, key=lambda name: places[name]):
        if groups and (places[name] - places[groups[-1][-1]]) / span <= 0.03:
            groups[-1].append(name)
        else:
            groups.append([name])
    return {name: _APART * (at - (len(group) - 1) / 2) for group in groups for at, name in enumerate(group)}


def style(configs: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Colour and shape of each of ``configs``: fixed for the study's arms, by name order for others."""
    strangers = [name for name in config_order(configs) if name not in STYLE]
    spare = {
        name: (_SPARE[at % len(_SPARE)], _SPARE_SHAPES[(at + at // len(_SPARE)) % len(_SPARE_SHAPES)])
        for at, name in enumerate(strangers)
    }
    return {name: STYLE.get(name) or spare[name] for name in config_order(configs)}


def colour(
    configs: Sequence[str],
    column: str = "config",
    legend: bool = True,
    labels: Mapping[str, str] | None = None,
) -> Any:
    """Colour channel by config, with a legend below the chart; ``labels`` replace names of configs."""
    styles = style(configs)
    scale = alt.Scale(domain=_printed(styles, labels), range=[c for c, _ in styles.values()])
    return alt.Color(f"{column}:N", scale=scale, legend=_legend(styles) if legend else None)


def shape(
    configs: Sequence[str],
    column: str = "config",
    legend: bool = True,
    labels: Mapping[str, str] | None = None,
) -> Any:
    """The shape channel by config; it shares the legend of :func:`colour`."""
    styles = style(configs)
    scale = alt.Scale(domain=_printed(styles, labels), range=[s for _, s in styles.values()])
    return alt.Shape(f"{column}:N", scale=scale, legend=_legend(styles) if legend else None)


def _printed(styles: Mapping[str, tuple[str, str]], labels: Mapping[str, str] | None) -> list[str]:
    return [(labels or {}).get(name, name) for name in styles]


def _legend(styles: Sized) -> Any:
    return alt.Legend(title=None, orient="bottom", columns=min(len(styles), 3))


# Colours of text, muted text, grid and lines: fixed on white paper, CSS variables on a page, which has light,
# dark and print modes.
PAPER = ("#1f2328", "#59636e", "#e6e8eb", "#aeb4bb")
PAGE = ("var(--ink)", "var(--muted)", "var(--grid)", "var(--line)")


_LABEL_SIZE = 11  # pixels
_WIDEST = 0.66  # mean width of a letter in the widest of the fallback fonts, in sizes of the font


def label_extent(labels: Sequence[str]) -> int:
    """Pixels that the longest of ``labels`` takes on a vertical axis in any font of :data:`FONT`.

    A drawing is laid out with the widths of the first font; a browser without it draws wider letters, and a
    label would begin left of the drawing.
    """
    return round(_WIDEST * _LABEL_SIZE * max((len(label) for label in labels), default=0))


def config(inks: tuple[str, str, str, str] = PAPER) -> dict[str, Any]:
    """The theme as a Vega-Lite config; the background is transparent unless ``inks`` is ``PAPER``."""
    ink, muted, grid, line = inks
    axes = {"labelFont": FONT, "titleFont": FONT, "labelFontSize": _LABEL_SIZE, "titleFontSize": 12,
            "titleFontWeight": 600, "titlePadding": 8,
            "labelColor": muted, "titleColor": ink, "domainColor": line, "tickColor": line,
            "gridColor": grid, "tickSize": 4,
            "labelPadding": 4, "labelFlush": False}  # fmt: skip
    legend = {"labelFont": FONT, "titleFont": FONT, "labelFontSize": 11, "titleFontSize": 11,
              "titleFontWeight": 600, "labelColor": ink,
              "titleColor": muted, "symbolSize": 80, "rowPadding": 4, "columnPadding": 14,
              "labelLimit": 220}  # fmt: skip
    title = {"font": FONT, "fontSize": 14, "fontWeight": "bold", "color": ink, "anchor": "start",
             "frame": "group", "offset": 12,
             "subtitleFont": FONT, "subtitleFontSize": 11, "subtitleColor": muted,
             "subtitlePadding": 5}  # fmt: skip
    header = {
        "labelFont": FONT,
        "labelFontSize": 12,
        "labelFontWeight": 600,
        "labelColor": ink,
        "title": None,
        "labelPadding": 6,
    }
    return {
        "background": "white" if inks == PAPER else "transparent",
        "font": FONT,
        "padding": 6,
        "view": {"stroke": None},
        "title": title,
        "axis": axes,
        "axisX": {"grid": False},
        "axisBand": {"grid": False, "ticks": False},
        "legend": legend,
        "header": header,
        "text": {"font": FONT, "color": ink, "fontSize": 11},
        "style": {
            "muted": {"color": muted},
            "guide": {"color": line},
            "band": {"color": muted, "opacity": 0.14},
        },
    }
