"""Plans as one HTML page without scripts: facts, maps of bits and rank, bytes by part, curve of budgets."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import vl_convert
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from bitrank_analysis.figures import PAGE, Figure, bare_spec, budget_curve, config, map_figures, part_bytes
from bitrank_analysis.figures.save import VEGA_LITE
from bitrank_analysis.matrix_names import place

_ENLARGED = (
    1.25  # widest drawing relative to its own size, so that its text is not much larger than the page's
)


@dataclass(frozen=True)
class PlanSection:
    """One plan of a page.

    ``name`` is its heading. ``formats``, ``ranks``, ``weights`` (bytes) and ``adapters`` (bytes) are by
    matrix; ``fixed`` are the bytes that no plan changes. ``facts`` are shown as they are, by label.
    """

    name: str
    formats: Mapping[str, str]
    ranks: Mapping[str, int]
    weights: Mapping[str, int]
    adapters: Mapping[str, int]
    fixed: int
    facts: Mapping[str, str] = field(default_factory=dict)


def plan_page(
    title: str, plans: Sequence[PlanSection], points: Sequence[Mapping[str, Any]] = (), label: str = ""
) -> str:
    """The page of ``plans`` as HTML.

    ``points`` and ``label`` are those of :func:`~bitrank_analysis.figures.budget_curve`; without points the
    page has no curve. All names are escaped, and figures are SVG inside the page.
    """
    templates = Environment(
        loader=PackageLoader("bitrank_analysis.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return templates.get_template("plan.html.j2").render(
        title=title,
        curve=_drawn(budget_curve(points, label)) if points else None,
        sections=[(plan, _figures(plan), _outside(plan)) for plan in plans],
        version=version("bitrank-analysis"),
        style=Markup(templates.get_template("page.css").render()),
    )


def _figures(plan: PlanSection) -> list[tuple[Figure, Markup]]:
    figures = map_figures(plan.name, plan.formats, plan.ranks)
    if plan.weights:
        figures.append(part_bytes(plan.weights, plan.adapters, plan.fixed))
    return [_drawn(figure) for figure in figures]


def _drawn(figure: Figure) -> tuple[Figure, Markup]:
    """``figure`` with its SVG, which Vega writes with all texts escaped."""
    themed = {**bare_spec(figure), "config": config(PAGE)}
    svg = vl_convert.vegalite_to_svg(themed, vl_version=VEGA_LITE)
    found = re.search(r'width="([\d.]+)"', svg)
    width = round(_ENLARGED * float(found[1])) if found else 0
    limit = f' style="max-width:{width}px"' if width else ""
    return figure, Markup(svg.replace("<svg", f"<svg{limit}", 1))


def _outside(plan: PlanSection) -> list[tuple[str, str, int]]:
    """Matrix, format and bytes of matrices outside the numbered layers, which no map shows."""
    names = [name for name in plan.formats if place(name)[0] is None]
    return [(name, plan.formats[name], plan.weights.get(name, 0)) for name in names]
