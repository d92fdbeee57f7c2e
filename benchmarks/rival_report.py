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
from bitrank_analysis.statistics import confidence, families
from harness import replace_section, table

PAGE = Path(__file__).resolve().parents[1] / "docs" / "results" / "rivals.md"
FOLDER = PAGE.with_suffix("")
JOURNAL, COMPARISONS = "evaluations.jsonl", "comparisons.csv"
REFERENCE = "bitrank"  # the arm that the others are compared with
ORIGINAL = "16 bits"  # measured once, shown beside every budget
METRIC_KEY = "ppl"
METRIC = METRICS[METRIC_KEY]
COLUMNS = ["quantizer", "bits", "allocation", "average_bits", "metric", "perplexity"]
COLUMNS += ["difference", "low", "high", "p"]


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


def log_ratio(arm: Evaluation, reference: Evaluation) -> confidence.Confidence:
    """The log ratio of two arms' perplexities over articles. Raises ``ValueError`` for other articles."""
    if arm.documents != reference.documents or arm.tokens != reference.tokens:
        raise ValueError(f"{arm.arm} and {reference.arm} were measured on different articles")
    return confidence.of_documents(np.array(arm.losses) - np.array(reference.losses), np.array(arm.tokens))


def comparisons(found: Sequence[Evaluation]) -> pd.DataFrame:
    """One row for each arm at a quantizer and budget where the reference is measured; references first.

    ``difference``, ``low`` and ``high`` are log ratios of perplexities to the reference with the 95 %
    interval over articles. ``p_holm`` is corrected over all arms but those of bitrank's
    other costs, which have none.
    """
    references = {(one.quantizer, one.bits): one for one in found if one.arm == REFERENCE}
    rows = []
    for one in sorted(found, key=lambda one: (one.quantizer, one.bits, one.arm != REFERENCE)):
        if one.arm == ORIGINAL or (one.quantizer, one.bits) not in references:
            continue
        row = {"quantizer": one.quantizer, "bits": one.bits, "allocation": one.arm}
        row |= {"average_bits": one.average_bits, "metric": METRIC_KEY, "perplexity": one.perplexity}
        if one.arm != REFERENCE:
            compared = log_ratio(one, references[one.quantizer, one.bits])
            low, high = compared.interval(0.05)
            row |= {"difference": compared.value, "low": low, "high": high, "p": compared.p}
        rows.append(row)
    frame = pd.DataFrame(rows, columns=COLUMNS)
    tested = ~frame["allocation"].str.startswith(REFERENCE)
    return frame.assign(p_holm=families.holm(frame["p"].where(tested).to_numpy(dtype=float)))


def write_report(found: Sequence[Evaluation], failures: Mapping[str, str], page: Path = PAGE) -> None:
    """Replace the section of results of ``page``, and write figure and CSV file beside the journal."""
    compared = comparisons(found)
    groups = sorted({(one.quantizer, one.bits) for one in found if one.arm != ORIGINAL})
    text = [section(found, compared, quantizer, bits) for quantizer, bits in groups]
    text += [f"**{name}** has no assignments here: {reason}" for name, reason in failures.items()]
    if len(compared):
        folder = page.with_suffix("")
        compared.to_csv(folder / COMPARISONS, index=False, float_format="%.6g")
        figure(compared[compared["difference"].notna()]).save(str(folder / "rivals.svg"))
        text.insert(0, "![difference of perplexity from bitrank's allocation](rivals/rivals.svg)")
    document = page.read_text(encoding="utf-8") if page.exists() else "# Rivals at equal bytes\n"
    page.write_text(replace_section(document, "rivals", "\n\n".join(text)), encoding="utf-8")


def section(found: Sequence[Evaluation], compared: pd.DataFrame, quantizer: str, bits: float) -> str:
    """The table of one quantizer and budget, best arm first."""
    here = compared[(compared["quantizer"] == quantizer) & (compared["bits"] == bits)]
    differences = {row["allocation"]: row for _, row in here[here["difference"].notna()].iterrows()}
    rows = [
        [one.arm, f"{one.average_bits:.3f}", f"{one.perplexity:.2f}", *cells(differences.get(one.arm))]
        for one in sorted(arms_at(found, quantizer, bits), key=lambda one: one.perplexity)
    ]
    head = ("allocation", "bits per weight", "perplexity", "against bitrank", "p (Holm)")
    return f"### {bits} bits, quantizer `{quantizer}`\n\n{table(head, rows)}"


def cells(row: pd.Series | None) -> tuple[str, str]:
    """A difference in percent with its interval, and its corrected p."""
    if row is None:
        return "–", "–"
    value, low, high = (METRIC.change(float(row[name])) for name in ("difference", "low", "high"))
    p = "–" if pd.isna(row["p_holm"]) else f"{row['p_holm']:.2g}"
    return f"{value:+.1f} % [{low:+.1f}, {high:+.1f}]", p


def arms_at(found: Sequence[Evaluation], quantizer: str, bits: float) -> list[Evaluation]:
    """The rows of one quantizer and budget, and the 16-bit model's."""
    return [one for one in found if one.arm == ORIGINAL or (one.quantizer, one.bits) == (quantizer, bits)]


def figure(rows: pd.DataFrame) -> alt.VConcatChart:
    """Differences with intervals: a row of panels for each quantizer, a column for each budget."""
    lines = [
        alt.hconcat(*(panel(one, f"{bits} bits, {quantizer}") for bits, one in part.groupby("bits")))
        for quantizer, part in rows.groupby("quantizer")
    ]
    return alt.vconcat(*lines).configure(padding={"left": 40, "right": 20, "top": 10, "bottom": 10})


def panel(rows: pd.DataFrame, title: str) -> alt.LayerChart:
    """The differences of one quantizer and budget, with a line at zero, on a scale linear near zero."""
    axis = alt.Axis(values=[0, 1, 3, 10, 30, 100, 300, 1000, 10_000], format=",d")
    x = alt.X("value:Q", title="% of perplexity", axis=axis, scale=alt.Scale(type="symlog"))
    shown = {"value": "difference", "low": "low", "high": "high"}
    percents = {name: [METRIC.change(float(nats)) for nats in rows[column]] for name, column in shown.items()}
    flat = pd.DataFrame({"arm": [*rows["allocation"]], **percents})
    base = alt.Chart(flat).encode(y=alt.Y("arm:N", title=None))
    points = base.mark_point(filled=True, size=40).encode(x=x)
    intervals = base.mark_rule().encode(x="low:Q", x2="high:Q")
    zero = alt.Chart().mark_rule(strokeDash=[3, 3], color="grey").encode(x=alt.datum(0))
    return alt.layer(zero, intervals, points, data=flat).properties(width=180, height=120, title=title)
