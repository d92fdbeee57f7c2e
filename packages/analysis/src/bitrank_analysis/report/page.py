"""The report as one HTML file that works offline: Vega, chart specs, style and text are embedded."""

from __future__ import annotations

import json
import re
from importlib.metadata import version
from typing import Any

import vl_convert
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from bitrank_analysis.figures import PAGE, bare_spec, config
from bitrank_analysis.figures.save import VEGA_LITE
from bitrank_analysis.report.model import Report, extent
from bitrank_analysis.statistics.verdicts import ALIKE, AS_GOOD, BETTER, DIFFERS, UNRESOLVED, WORSE

# Verdict → CSS class. Verdicts from a single seed are not coloured as success or failure.
_STYLES = {
    BETTER: "better",
    WORSE: "worse",
    AS_GOOD: "as-good-as",
    UNRESOLVED: "unresolved",
    DIFFERS: "one-seed",
    ALIKE: "one-seed",
}
# Tables that are collapsed when the page opens; the first two tables of a section are not.
_COLLAPSED = ("pareto", "factorial", "plans", "ranks")


def page(report: Report) -> str:
    """The report as HTML."""
    templates = Environment(
        loader=PackageLoader("bitrank_analysis.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters["unbroken"] = _unbroken
    figures = [figure for section in report.sections for figure in section.figures]
    return templates.get_template("report.html.j2").render(
        report=report,
        extent=extent(report.sections),
        collapsed=_COLLAPSED,
        verdict_styles=_STYLES,
        version=version("bitrank-analysis"),
        style=Markup(templates.get_template("page.css").render()),
        script=Markup(templates.get_template("page.js").render()),
        # The bundle contains "</" inside regular expressions, so it must not be escaped.
        vega=Markup(vl_convert.javascript_bundle(vl_version=VEGA_LITE)),  # type: ignore[call-arg] # old stub
        specs=_script_json(
            {"config": config(PAGE), "charts": {figure.name: bare_spec(figure) for figure in figures}}
        ),
    )


def _unbroken(text: str) -> str:
    """``text`` with non-breaking hyphens, so that no line breaks inside ``B-FP``."""
    return re.sub(r"(?<=\w)-(?=\w)", "\u2011", text)


def _script_json(value: Any) -> Markup:
    """``value`` as JSON without ``<``, so that it cannot close the script element around it."""
    return Markup(json.dumps(value, separators=(",", ":")).replace("<", "\\u003c"))
