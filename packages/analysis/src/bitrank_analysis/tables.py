"""The study's tables: full values as CSV, formatted text as LaTeX (booktabs), Markdown and HTML."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from bitrank_analysis import phrasing
from bitrank_analysis.evidence import Evidence
from bitrank_analysis.figures.ranks import final_ranks
from bitrank_analysis.files import name_of, write_atomically
from bitrank_analysis.matrix_names import module_order
from bitrank_analysis.metrics import metric_of
from bitrank_analysis.one_line import markdown_cell
from bitrank_analysis.published import compared_text, result_text
from bitrank_analysis.score_kept import FULL_LORA, with_share_text

# Column → printed heading and formatter of its values.
Heads = Mapping[str, tuple[str, Callable[[Any], str]]]
_LATEX = {
    **{letter: "\\" + letter for letter in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "−": "$-$",
    "×": r"$\times$",
    "–": "--",
    "<": "$<$",
    ">": "$>$",
}


@dataclass(frozen=True)
class Table:
    """``frame`` has full values; ``shown`` has the same rows as text under the printed headings."""

    name: str
    caption: str
    frame: pd.DataFrame
    shown: pd.DataFrame

    def csv(self) -> str:
        """All columns at full precision."""
        return self.frame.to_csv(index=False)

    def markdown(self) -> str:
        """A pipe table."""
        rows = [
            list(self.shown.columns),
            ["---", *["---:"] * (self.shown.shape[1] - 1)],
            *self.shown.values.tolist(),
        ]
        text = ""
        for row in rows:
            cells = [markdown_cell(str(cell)) for cell in row]
            text += f"| {' | '.join(cells)} |\n"
        return text

    def latex(self) -> str:
        """A ``tabular`` with booktabs rules, every cell escaped; the paper adds float, caption and label."""
        rows = [
            " & ".join(latex_escape(str(cell)) for cell in row) + r" \\" for row in self.shown.values.tolist()
        ]
        head = " & ".join(latex_escape(str(name)) for name in self.shown.columns) + r" \\"
        columns = "l" + "r" * (self.shown.shape[1] - 1)
        return "\n".join(
            [
                rf"\begin{{tabular}}{{{columns}}}",
                r"\toprule",
                head,
                r"\midrule",
                *rows,
                r"\bottomrule",
                r"\end{tabular}",
                "",
            ]
        )

    def save(self, folder: Path) -> None:
        """Write ``<name>.csv .tex .md`` into ``folder``."""
        folder.mkdir(parents=True, exist_ok=True)
        for ending, text in (("csv", self.csv()), ("tex", self.latex()), ("md", self.markdown())):
            write_atomically(folder / f"{self.name}.{ending}", text)


def latex_escape(text: str) -> str:
    """``text`` with LaTeX's special characters escaped."""
    return "".join(_LATEX.get(letter, letter) for letter in text)


def tables(evidence: Evidence) -> list[Table]:
    """Every table of ``evidence`` that has rows, named ``<table>-<task>``."""
    made = [
        _arms(evidence),
        _comparisons(evidence),
        _further(evidence),
        _front(evidence),
        _factorial(evidence),
        _plans(evidence),
        _ranks(evidence),
        _hypotheses(evidence),
        published(evidence.published, evidence.metric, evidence.task),
    ]
    return [table for table in made if not table.frame.empty]


def _table(evidence: Evidence, name: str, caption: str, frame: pd.DataFrame, heads: Heads) -> Table:
    """A table whose text shows the columns of ``heads``, except those without any value."""
    columns = {}
    for column, (head, write) in heads.items():
        if column in frame and not frame[column].isna().all():
            columns[head] = [_text(value, write) for value in frame[column]]
    shown = pd.DataFrame(columns, dtype=object)
    return Table(name_of(name, evidence.task), f"{caption} ({evidence.task})", frame, shown)


def _text(value: Any, write: Callable[[Any], str]) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return phrasing.NOTHING
    return write(value)


def _fixed(digits: int) -> Callable[[Any], str]:
    return lambda value: f"{value:,.{digits}f}"


def _arms(evidence: Evidence) -> Table:
    def as_quality(value: float) -> str:
        return phrasing.quality(value, evidence.metric)

    heads: Heads = {
        "config": ("Arm", str),
        "seeds": ("Seeds", str),
        "quality": (metric_of(evidence.metric).title, as_quality),
        "low": ("95 % low", as_quality),
        "high": ("95 % high", as_quality),
        "zero": ("Untrained", as_quality),
        "share": ("Kept %", str),
        "stored_mib": ("Stored MiB", _fixed(1)),
        "bits": ("Bits", _fixed(2)),
        "peak_mib": ("Peak MiB", _fixed(0)),
        "trainable_percent": ("Trained %", _fixed(2)),
        "reduction": ("Reduction %", _fixed(1)),
        "rank": ("Rank", _fixed(0)),
        "plan_s": ("Plan s", _fixed(0)),
        "seconds": ("Seconds", _fixed(0)),
    }
    caption = "Quality and cost of each arm; intervals over examples"
    if FULL_LORA in evidence.configs:
        caption += f"; reduction: final adapter parameters below those of {FULL_LORA}"
    if "kept" in evidence.arms:
        caption += f"; kept: share of the score of {FULL_LORA}, with its 95 % interval"
    return _table(evidence, "arms", caption, with_share_text(_with_reduction(evidence.arms)), heads)


def _with_reduction(arms: pd.DataFrame) -> pd.DataFrame:
    """``arms`` with the percent of adapter parameters that each saves against LoRA on every matrix.

    They are those left at the end of training. The column is NaN without :data:`FULL_LORA`.
    """
    sizes = dict(zip(arms["config"], arms["adapter_mib"], strict=True))
    return arms.assign(reduction=100 * (1 - arms["adapter_mib"] / sizes.get(FULL_LORA, math.nan)))


def _comparisons(evidence: Evidence) -> Table:
    def as_change(value: float) -> str:
        return phrasing.signed(phrasing.change(value, evidence.metric), 2)

    short = metric_of(evidence.metric).change_unit
    heads: Heads = {
        "candidate": ("Arm", str),
        "baseline": ("Against", str),
        "difference": (f"Difference, {short}", as_change),
        "low": ("95 % low", as_change),
        "high": ("95 % high", as_change),
        "seed_low": ("Seeds low", as_change),
        "seed_high": ("Seeds high", as_change),
        "p": ("p", phrasing.p_value),
        "p_holm": ("p (Holm)", phrasing.p_value),
        "tost_p_holm": ("p equal (Holm)", phrasing.p_value),
        "verdict": ("Verdict", str),
    }
    several = not evidence.comparisons.empty and (evidence.comparisons["seeds"] > 1).any()
    over = "examples and seeds together" if several else "examples"
    caption = f"Paired differences in {phrasing.name(evidence.metric)}, intervals over {over}"
    return _table(evidence, "comparisons", caption, evidence.comparisons, heads)


def _further(evidence: Evidence) -> Table:
    """Paired differences in the other metrics of the task; each metric is a family of its own."""
    rows = []
    for row in evidence.further.itertuples():
        key = str(row.metric)
        differences = [
            phrasing.signed(phrasing.change(value, key), 2) if math.isfinite(value) else phrasing.NOTHING
            for value in (row.difference, row.low, row.high)
        ]
        qualities = [phrasing.quality(value, key) for value in (row.candidate_quality, row.baseline_quality)]
        rows.append(
            (
                metric_of(key).title, row.candidate, row.baseline, *qualities, *differences,
                phrasing.p_value(row.p_holm), row.verdict,
            )
        )  # fmt: skip
    heads = (
        "Metric", "Arm", "Against", "Quality of the arm", "Of the other", "Difference", "95 % low",
        "95 % high", "p (Holm)", "Verdict",
    )  # fmt: skip
    shown = pd.DataFrame(rows, columns=list(heads), dtype=object)
    caption = f"Paired differences in further metrics ({evidence.task})"
    return Table(f"further-{evidence.task}", caption, evidence.further, shown)


def _front(evidence: Evidence) -> Table:
    parts = [
        frame.assign(cost=cost)
        for cost, frame in (("stored MiB", evidence.front), ("peak MiB", evidence.memory_front))
        if not frame.empty
    ]
    frame = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
    heads: Heads = {
        "config": ("Arm", str),
        "cost": ("Cost", str),
        "x": ("Value", _fixed(1)),
        "quality": ("Quality", lambda value: phrasing.quality(value, evidence.metric)),
        "membership": ("On the front", str),
        "probability": ("Probability", _fixed(2)),
    }
    return _table(evidence, "pareto", "Fronts of cost and quality; probability over resamples", frame, heads)


def _factorial(evidence: Evidence) -> Table:
    def as_change(value: float) -> str:
        return phrasing.signed(phrasing.change(value, evidence.metric), 2)

    heads: Heads = {
        "factorial": ("Factorial", str),
        "effect": ("Effect", str),
        "estimate": ("Estimate", as_change),
        "low": ("95 % low", as_change),
        "high": ("95 % high", as_change),
        "p": ("p", phrasing.p_value),
        "p_holm": ("p (Holm)", phrasing.p_value),
        "verdict": ("Verdict", str),
    }
    return _table(
        evidence,
        "factorial",
        f"Rank by precision, in {phrasing.unit(evidence.metric)}",
        evidence.factorial,
        heads,
    )


def _plans(evidence: Evidence) -> Table:
    """Number formats by layer and arm; a layer with several formats lists the modules of each."""
    plans = evidence.plans.drop_duplicates(["config", "matrix"])
    plans = plans.assign(place=[_place(row.layer, row.module) for row in plans.itertuples()])
    order = plans.sort_values(["layer", "module"], na_position="first")["place"].drop_duplicates()
    frame = plans.groupby(["place", "config"])[["module", "format"]].apply(_formats).unstack("config")
    frame = frame.reindex(index=list(order), columns=evidence.configs).reset_index()
    heads: Heads = {"place": ("Layer", str), **{name: (name, str) for name in evidence.configs}}
    return _table(evidence, "plans", "Number format of each layer", frame, heads)


def _place(layer: float, module: str) -> str:
    return module if math.isnan(layer) else f"layer {int(layer)}"


def _formats(cell: pd.DataFrame) -> str:
    groups = {text: module_order(group["module"]) for text, group in cell.groupby("format")}
    if len(groups) == 1:
        return next(iter(groups))
    return "; ".join(f"{text} ({', '.join(names)})" for text, names in groups.items())


def _ranks(evidence: Evidence) -> Table:
    """Mean final rank of each layer; with the range over its matrices (and seeds) if they differ."""
    ranks = final_ranks(evidence).dropna(subset=["layer"])
    spans = ranks.groupby(["layer", "config"])["rank"].agg(["mean", "min", "max"]).reset_index()
    texts = [
        f"{row.mean:.1f}" if row.min == row.max else f"{row.mean:.1f} ({row.min}–{row.max})"
        for row in spans.itertuples(name="Span")
    ]
    by_config = spans.assign(text=texts).pivot(index="layer", columns="config", values="text")
    frame = by_config.reindex(columns=evidence.configs).reset_index()
    heads: Heads = {"layer": ("Layer", _fixed(0)), **{name: (name, str) for name in evidence.configs}}
    return _table(
        evidence, "ranks", "Final rank: mean over the matrices of a layer (lowest–highest)", frame, heads
    )


def _hypotheses(evidence: Evidence) -> Table:
    heads: Heads = {
        "hypothesis": ("Hypothesis", str),
        "text": ("Statement", str),
        "compared": ("Compared", str),
        "result": ("Result", str),
        "finding": ("Finding", str),
        "reason": ("Reason", str),
    }
    caption = "The study's own hypotheses, stated before its runs, and what these runs show"
    return _table(evidence, "hypotheses", caption, evidence.hypotheses, heads)


def published(frame: pd.DataFrame, metric: str, task: str) -> Table:
    """The table of what was claimed, by whom, and what was found; ``frame`` is that of
    :func:`~bitrank_analysis.published.findings_on_claims`.
    """
    rows = [
        {
            "Claim": row.claim,
            "By": row.source,
            "Compared": compared_text(row),
            "Result": result_text(row, metric),
            "Finding": f"{row.finding}: {row.reason}",
        }
        for row in frame.itertuples()
    ]
    caption = f"What was claimed, by whom, and what these runs show ({task})"
    return Table(name_of("published", task), caption, frame, pd.DataFrame(rows, dtype=object))
