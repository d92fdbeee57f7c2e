"""Distribution of ranks: per matrix, over training, and per layer."""

from __future__ import annotations

import altair as alt
import pandas as pd

from bitrank_analysis import phrasing
from bitrank_analysis.errors import AnalysisError
from bitrank_analysis.evidence import Evidence
from bitrank_analysis.figures.coinciding import drawn_once, labels_of
from bitrank_analysis.figures.theme import COLUMN, Figure, colour
from bitrank_analysis.matrix_names import module_order

_LETTER = 7  # pixels of a letter of a label
_KEYS = ["config", "seed", "matrix", "layer", "module"]


def final_ranks(evidence: Evidence) -> pd.DataFrame:
    """The last rank of each matrix per run; columns config, seed, matrix, layer, module, rank.

    Runs record the ranks of adapters. A matrix that the plan leaves without one has rank 0 here, as one has
    whose adapter was pruned: the mean of a layer is over the same matrices in both cases.
    """
    recorded = evidence.ranks[evidence.ranks["final"].astype(bool)][[*_KEYS, "rank"]]
    unadapted = evidence.plans.loc[evidence.plans["rank"] == 0, _KEYS]
    unadapted = unadapted.merge(recorded[["config", "seed"]].drop_duplicates())
    if unadapted.empty:
        return recorded
    both = pd.concat([recorded, unadapted.assign(rank=0)], ignore_index=True)
    return both.drop_duplicates(["config", "seed", "matrix"])  # a recorded rank is first


def adaptive(evidence: Evidence) -> list[str]:
    """Arms whose ranks changed during training."""
    moved = evidence.ranks.groupby(["config", "seed", "matrix"])["rank"].nunique().groupby("config").max()
    return [name for name in evidence.configs if moved.get(name, 1) > 1]


def with_own_ranks(evidence: Evidence) -> list[str]:
    """Arms whose ranks differ by matrix: chosen by a planner, or changed during training."""
    recorded = set(final_ranks(evidence)["config"])
    chosen = [*adaptive(evidence), *evidence.planned]
    return [name for name in evidence.configs if name in chosen and name in recorded]


def rank_map(evidence: Evidence) -> Figure:
    """Final rank of each matrix, layers by modules, for each adaptive and planned arm; mean over seeds.

    Raises :class:`AnalysisError` without such an arm.
    """
    arms = with_own_ranks(evidence)
    if not arms:
        raise AnalysisError(
            "expected an arm whose ranks a planner chose or training moves, got none; run Plan-Q4, B-Ada, "
            "Joint-1 or Joint-2"
        )
    cells = (
        final_ranks(evidence)
        .query("config in @arms")
        .groupby(["config", "layer", "module"], as_index=False)["rank"]
        .mean()
    )
    by_module = cells.groupby("module")["rank"].mean().sort_values()
    (least, low), (most, high) = ((by_module.index[at], by_module.iloc[at]) for at in (0, -1))
    extremes = f"most rank to {most} (mean {high:.1f}) and least to {least} ({low:.1f})"
    title = f"{phrasing.listed(arms)} {'give' if len(arms) > 1 else 'gives'} {extremes}"
    if low == high:
        title = f"Every kind of matrix has a mean rank of {low:.1f} in {phrasing.listed(arms)}"
    seeds = f", mean of {evidence.seeds} seeds" if evidence.seeds > 1 else ""
    note = (
        f"{evidence.task}: final LoRA rank of each weight matrix{seeds}; rows are layers from input (top) "
        "to output."
    )
    return Figure("rank-map", title, heat_map(cells, "rank", arms, "Rank"), note, wide=True)


def heat_map(cells: pd.DataFrame, value: str, arms: list[str], legend: str = "") -> alt.FacetChart:
    """Heat map of layers (rows) by modules (columns), one panel per arm in ``arms``.

    ``cells`` has the columns config, layer, module and ``value``. Without ``legend`` the colour scale has no
    legend.
    """
    modules, layers = module_order(cells["module"]), cells["layer"].nunique()
    height, size = (15, 9) if layers > 16 else (22, 11)
    width = max(16, min(34, 540 // (len(arms) * len(modules))))
    fits = width >= 30 and all(_LETTER * len(module) <= width for module in modules)
    middle = 0.55 * cells[value].max()
    base = alt.Chart(cells.assign(layer=cells["layer"].astype(int))).encode(
        x=alt.X("module:N", sort=modules, title=None, axis=alt.Axis(labelAngle=0 if fits else -60)),
        y=alt.Y("layer:O", title="Layer"),
    )
    ramp = (
        alt.Scale(scheme="blues", domainMin=0)
        if cells[value].nunique() > 1
        else alt.Scale(scheme="blues", domain=[0, float(cells[value].max()) or 1])
    )
    squares = base.mark_rect().encode(
        color=alt.Color(
            f"{value}:Q",
            title=legend,
            scale=ramp,
            legend=alt.Legend(gradientLength=110, tickCount=4) if legend else None,
        ),
        tooltip=["config:N", "layer:O", "module:N", alt.Tooltip(f"{value}:Q", format=".2~f")],
    )
    numbers = base.mark_text(fontSize=size if width >= 20 else 8, baseline="middle").encode(
        text=alt.Text(f"{value}:Q", format=".0f"),
        color=alt.condition(f"datum.{value} > {middle}", alt.value("white"), alt.value("#1f2328")),
    )
    panel = alt.layer(squares, numbers).properties(width=width * len(modules), height=height * layers)
    return panel.facet(column=alt.Column("config:N", sort=arms, title=None), spacing=14)


def rank_time(evidence: Evidence) -> Figure:
    """Mean rank of each layer over training steps, one panel per adaptive arm.

    Raises :class:`AnalysisError` without an adaptive arm, or if no rank belongs to a numbered layer.
    """
    arms = _adaptive_or_refuse(evidence)
    moves = evidence.ranks.query("config in @arms").dropna(subset=["step", "layer"])
    if moves.empty:
        raise _unnumbered()
    cells = moves.groupby(["config", "layer", "step"], as_index=False)["rank"].mean()
    cells = cells.assign(layer=cells["layer"].astype(int), step=cells["step"].astype(int))
    layers = cells["layer"].nunique()
    panel = (
        alt.Chart(cells)
        .mark_rect()
        .encode(
            x=alt.X(
                "step:O",
                title="Optimizer step",
                axis=alt.Axis(values=_some(sorted(cells["step"].unique())), labelAngle=0),
            ),
            y=alt.Y(
                "layer:O", title="Layer", axis=alt.Axis(values=_some(sorted(cells["layer"].unique()), 6))
            ),
            color=alt.Color(
                "rank:Q",
                title="Mean rank",
                scale=alt.Scale(scheme="blues", domainMin=0),
                legend=alt.Legend(gradientLength=110),
            ),
            tooltip=["config:N", "layer:O", "step:O", alt.Tooltip("rank:Q", format=".2f")],
        )
        .properties(width=540 // max(len(arms), 2), height=max(130, 8 * layers))
    )
    note = f"{evidence.task}: mean rank over the matrices of a layer, at each recorded step."
    return Figure(
        "rank-time",
        _settled(moves, arms),
        panel.facet(column=alt.Column("config:N", sort=arms, title=None), spacing=14),
        note,
        wide=True,
    )


def rank_layers(evidence: Evidence) -> Figure:
    """Mean final rank per layer, one line per arm.

    Raises :class:`AnalysisError` if no rank belongs to a numbered layer.
    """
    lines = (
        final_ranks(evidence)
        .dropna(subset=["layer"])
        .groupby(["config", "layer"], as_index=False)["rank"]
        .mean()
    )
    if lines.empty:
        raise _unnumbered()
    labels = labels_of(lines, "layer", "rank", evidence.configs)
    numbers = _some(sorted(int(layer) for layer in lines["layer"].unique()), 8)
    chart = (
        alt.Chart(drawn_once(lines, labels))
        .mark_line(point=alt.OverlayMarkDef(size=26, filled=True), strokeWidth=1.8)
        .encode(
            x=alt.X(
                "layer:Q", title="Layer (0 is next to the input)", axis=alt.Axis(values=numbers, format="d")
            ),
            y=alt.Y("rank:Q", title="Mean rank", scale=alt.Scale(domainMin=0)),
            color=colour(list(labels), labels=labels),
            tooltip=["config:N", "layer:Q", alt.Tooltip("rank:Q", format=".2f")],
        )
        .properties(width=COLUMN, height=190)
    )
    return Figure(
        "rank-layers",
        _layers_title(lines, adaptive(evidence)),
        chart,
        f"{evidence.task}: final rank, mean over the matrices of a layer and over seeds; "
        "equal lines are drawn as one.",
    )


def _layers_title(lines: pd.DataFrame, arms: list[str]) -> str:
    """Mean final rank of adaptive ``arms`` in the first and the second half of the layers."""
    if not arms:
        return "No arm moved its ranks: each layer keeps the rank of the plan"
    moved, half = lines.query("config in @arms"), lines["layer"].max() / 2
    early = moved[moved["layer"] <= half]["rank"].mean()
    late = moved[moved["layer"] > half]["rank"].mean()
    return (
        f"Adaptive arms end with a mean rank of {early:.1f} in the first half of the layers and "
        f"{late:.1f} in the second"
    )


def _unnumbered() -> AnalysisError:
    return AnalysisError(
        "expected ranks of matrices in numbered layers, got none; was the adapter attached outside them?"
    )


def _adaptive_or_refuse(evidence: Evidence) -> list[str]:
    arms = adaptive(evidence)
    if not arms:
        raise AnalysisError(
            "expected an arm whose ranks move during training, got none; run B-Ada, Joint-1 or Joint-2"
        )
    return arms


def _settled(moves: pd.DataFrame, arms: list[str]) -> str:
    """The step of the last recorded rank change of each arm, as text.

    The ranks of an arm that reduces them once, at the end of training, change after every recorded step.
    """
    sentences = []
    for name in arms:
        of_arm = moves[moves["config"] == name].sort_values("step")
        moved = of_arm[of_arm.groupby(["seed", "matrix"])["rank"].diff().fillna(0) != 0]
        last = "at the end" if moved.empty else f"at step {int(moved['step'].max())}"
        sentences.append(f"{name} {last}")
    return f"Ranks last changed: {phrasing.listed(sentences)}, of {int(moves['step'].max())}"


def _some(numbers: list[int], most: int = 4) -> list[int]:
    """About ``most`` of ``numbers`` at equal distances, as axis labels."""
    return [int(number) for number in numbers[:: max(1, len(numbers) // most)]]
