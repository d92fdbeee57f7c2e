"""Format numbers and lists as text, the same way in titles, tables and sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence

from bitrank_analysis.metrics import metric_of

# Printed for a value that is unknown or does not apply.
NOTHING = "–"


def whole(value: float) -> str:
    """``1858.4`` as ``1,858``; a dash for NaN (not measured)."""
    return NOTHING if math.isnan(value) else f"{value:,.0f}"


def quality(value: float, metric: str) -> str:
    """``0.833`` as ``83.3 %`` for accuracy, ``21.374`` as ``21.37`` for perplexity."""
    return metric_of(metric).text(value)


def change(difference: float, metric: str) -> float:
    """A difference in reported units: accuracy in points, perplexity (a log ratio) in percent."""
    return metric_of(metric).change(difference)


def margin(value: float, metric: str) -> str:
    """An equivalence margin as text: ``1 point of accuracy``, ``2 % of perplexity``."""
    size = f"{change(value, metric):.2g}"
    return f"{size} {unit(metric)}" if size != "1" else f"1 {unit(metric).replace('points', 'point')}"


def signed(value: float, digits: int = 1) -> str:
    """``-0.7`` as ``−0.7``, ``0.7`` as ``+0.7``; zero without a sign, NaN as a dash."""
    if math.isnan(value):
        return NOTHING
    text = f"{abs(value):.{digits}f}"
    return text if float(text) == 0 else ("−" if value < 0 else "+") + text


def unit(metric: str) -> str:
    """The unit of :func:`change`."""
    return metric_of(metric).unit


def axis(metric: str) -> str:
    """Axis label of the metric, with the better direction."""
    return metric_of(metric).axis


def name(metric: str) -> str:
    """The metric's name inside a sentence."""
    return metric_of(metric).name


def on_axis(value: float, metric: str) -> float:
    """``value`` in the unit of :func:`axis`."""
    return metric_of(metric).factor * value


def listed(names: Sequence[str]) -> str:
    """Join names: ``a``, ``a and b``, ``a, b and c``."""
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"


def difference(value: float, low: float, high: float, p_holm: float, metric: str) -> str:
    """A difference with its interval and corrected p.

    ``−1.20 [−2.00, −0.40] % of perplexity, p (Holm) 0.012``; limits that are not finite are dashes.
    """
    texts = [
        signed(change(part, metric), 2) if math.isfinite(part) else NOTHING for part in (value, low, high)
    ]
    return f"{texts[0]} [{texts[1]}, {texts[2]}] {unit(metric)}, p (Holm) {p_value(p_holm)}"


def p_value(p: float) -> str:
    """A p value as printed: ``0.034``, or ``< 0.001``."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def count(number: int, word: str) -> str:
    """A number with its noun, plural where needed: ``1 seed``, ``3 seeds``."""
    return f"{number} {word}" if number == 1 else f"{number} {word}s"
