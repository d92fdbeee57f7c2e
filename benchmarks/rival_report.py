"""The journal of `benchmarks/rivals.py`, and its page and figure: perplexity by arm with paired intervals."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import altair as alt
import numpy as np
import pandas as pd
from bitrank_analysis import METRICS
from bitrank_analysis.statistics import PAIRED_TESTS
from harness import replace_section, table

PAGE = Path(__file__).resolve().parents[1] / "docs" / "results" / "rivals.md"
FOLDER = PAGE.with_suffix("")
JOURNAL = "evaluations.jsonl"
REFERENCE = "bitrank"  # the arm that the others are compared with
ORIGINAL = "16 bits"  # measured once, shown beside every budget
METRIC = METRICS["ppl"]


@dataclass(frozen=True)
class Evaluation:
    """One arm at a budget of ``bits``: losses in nats and tokens of the test articles."""

    arm: str
    quantizer: str
    bits: float
    average_bits: float
    documents: list[str]
    losses: list[float]
    tokens: list[float]

    @property
    def perplexity(self) -> float:
        """Of all articles together."""
        return float(np.exp(sum(self.losses) / sum(self.tokens)))


@dataclass(frozen=True)
class Difference:
    """Perplexity of an arm relative to the reference's, in percent of it, with the 95 % interval over
    articles."""

    value: float
    low: float
    high: float

    def text(self) -> str:
        return f"{self.value:+.1f} % [{self.low:+.1f}, {self.high:+.1f}]"


def read_evaluations(folder: Path = FOLDER) -> list[Evaluation]:
    """All rows of the journal."""
    place = folder / JOURNAL
    lines = place.read_text(encoding="utf-8").splitlines() if place.exists() else []
    return [Evaluation(**json.loads(line)) for line in lines]


def append(found: Evaluation, folder: Path = FOLDER) -> None:
    """Add a row to the journal."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / JOURNAL).open("a", encoding="utf-8") as journal:
        journal.write(json.dumps(asdict(found)) + "\n")


def difference(arm: Evaluation, reference: Evaluation) -> Difference:
    """The paired difference of two arms. Raises ``ValueError`` if they were measured on other articles."""
    if arm.documents != reference.documents or arm.tokens != reference.tokens:
        raise ValueError(f"{arm.arm} and {reference.arm} were measured on different articles")
    gaps_N = np.array(arm.losses) - np.array(reference.losses)
    weights_N = np.array(arm.tokens)
    low, high = PAIRED_TESTS[METRIC.test].interval(gaps_N, weights_N, 0.05)
    return Difference(*(METRIC.change(float(nats)) for nats in (gaps_N.sum() / weights_N.sum(), low, high)))


def write_report(found: Sequence[Evaluation], failures: Mapping[str, str], page: Path = PAGE) -> None:
    """Replace the section of results of ``page``, and write the figure beside the journal."""
    groups = sorted({(one.quantizer, one.bits) for one in found if one.arm != ORIGINAL})
    text = [section(found, quantizer, bits) for quantizer, bits in groups]
    text += [f"**{name}** has no assignments here: {reason}" for name, reason in failures.items()]
    if rows := differences(found):
        folder = page.with_suffix("")
        figure(rows).save(str(folder / "rivals.svg"))
        text.insert(0, "![difference of perplexity from bitrank's allocation](rivals/rivals.svg)")
    document = page.read_text(encoding="utf-8") if page.exists() else "# Rivals at equal bytes\n"
    page.write_text(replace_section(document, "rivals", "\n\n".join(text)), encoding="utf-8")


def section(found: Sequence[Evaluation], quantizer: str, bits: float) -> str:
    """The table of one quantizer and budget, best arm first."""
    arms = sorted(arms_at(found, quantizer, bits), key=lambda one: one.perplexity)
    compared = {row["arm"]: row["difference"] for row in differences(arms)}
    rows = [
        [
            one.arm,
            f"{one.average_bits:.3f}",
            f"{one.perplexity:.2f}",
            compared[one.arm].text() if one.arm in compared else "–",
        ]
        for one in arms
    ]
    head = ("allocation", "bits per weight", "perplexity", "against bitrank")
    return f"### {bits} bits, quantizer `{quantizer}`\n\n{table(head, rows)}"


def arms_at(found: Sequence[Evaluation], quantizer: str, bits: float) -> list[Evaluation]:
    """The rows of one quantizer and budget, and the 16-bit model's."""
    return [one for one in found if one.arm == ORIGINAL or (one.quantizer, one.bits) == (quantizer, bits)]


def differences(found: Sequence[Evaluation]) -> list[dict]:
    """Every arm against the reference of its quantizer and budget, where that is measured."""
    references = {(one.quantizer, one.bits): one for one in found if one.arm == REFERENCE}
    return [
        {
            "arm": one.arm,
            "quantizer": one.quantizer,
            "bits": one.bits,
            "difference": difference(one, references[one.quantizer, one.bits]),
        }
        for one in found
        if one.arm not in (REFERENCE, ORIGINAL) and (one.quantizer, one.bits) in references
    ]


def figure(rows: Sequence[dict]) -> alt.VConcatChart:
    """Differences with intervals: a row of panels for each quantizer, a column for each budget."""
    quantizers = sorted({row["quantizer"] for row in rows})
    budgets = sorted({row["bits"] for row in rows})
    lines = []
    for quantizer in quantizers:
        panels = []
        for bits in budgets:
            chosen = [row for row in rows if (row["quantizer"], row["bits"]) == (quantizer, bits)]
            if chosen:
                panels.append(panel(chosen, f"{bits} bits, {quantizer}"))
        lines.append(alt.hconcat(*panels))
    return alt.vconcat(*lines).configure(padding={"left": 40, "right": 20, "top": 10, "bottom": 10})


def panel(rows: Sequence[dict], title: str) -> alt.LayerChart:
    """The differences of one quantizer and budget, with a line at zero, on a scale linear near zero."""
    axis = alt.Axis(values=[0, 1, 3, 10, 30, 100, 300, 1000, 10_000], format=",d")
    x = alt.X("value:Q", title="% of perplexity", axis=axis, scale=alt.Scale(type="symlog"))
    flat = [{"arm": row["arm"], **asdict(row["difference"])} for row in rows]
    base = alt.Chart(pd.DataFrame(flat)).encode(y=alt.Y("arm:N", title=None))
    points = base.mark_point(filled=True, size=40).encode(x=x)
    intervals = base.mark_rule().encode(x="low:Q", x2="high:Q")
    zero = alt.Chart().mark_rule(strokeDash=[3, 3], color="grey").encode(x=alt.datum(0))
    return alt.layer(zero, intervals, points, data=pd.DataFrame(flat)).properties(
        width=180, height=120, title=title
    )
