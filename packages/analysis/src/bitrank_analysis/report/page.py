"""The report as one HTML file that asks the network for nothing: Vega, specs, style and words are all inside."""

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
from bitrank_analysis.report.model import Report, sentences
from bitrank_analysis.statistics.verdicts import ALIKE, AS_GOOD, BETTER, DIFFERS, UNRESOLVED, WORSE

# Verdict → its class in the style sheet. What one seed shows has the colour of no result.
_STYLES = {
    BETTER: "better",
    WORSE: "worse",
    AS_GOOD: "as-good-as",
    UNRESOLVED: "unresolved",
    DIFFERS: "one-seed",
    ALIKE: "one-seed",
}
# Tables that a reader opens when wanted; the first two stand open.
_FOLDED = ("pareto", "factorial", "plans", "ranks")


def page(report: Report) -> str:
    """The whole page."""
    templates = Environment(
        loader=PackageLoader("bitrank_analysis.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters["whole"] = _whole
    figures = [figure for section in report.sections for figure in section.figures]
    return templates.get_template("report.html.j2").render(
        report=report,
        sentences=sentences(report.sections),
        folded=_FOLDED,
        verdict_styles=_STYLES,
        version=version("bitrank-analysis"),
        style=Markup(templates.get_template("page.css").render()),
        script=Markup(templates.get_template("page.js").render()),
        # The bundle holds "</" inside regular expressions: it must stand as it is.
        vega=Markup(vl_convert.javascript_bundle(vl_version=VEGA_LITE)),  # type: ignore[call-arg] # its stub is behind
        specs=_script_json(
            {"config": config(PAGE), "charts": {figure.name: bare_spec(figure) for figure in figures}}
        ),
    )


def _whole(text: str) -> str:
    """``text`` whose hyphens do not break a line: ``B-FP`` stays whole."""
    return re.sub(r"(?<=\w)-(?=\w)", "\u2011", text)


def _script_json(value: Any) -> Markup:
    """JSON that cannot close the script element that it stands in."""
    return Markup(json.dumps(value, separators=(",", ":")).replace("<", "\\u003c"))
