"""Table, JSON and figure of ``rank_rate.py``."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import altair as alt
import pandas as pd
from bitrank_adapters import SCALE_POLICIES, AdapterScale


class Cell(NamedTuple):
    """One run: uniform ``rank`` scaled by ``policy``, trained at ``rate`` with ``seed`` on ``task``."""

    task: str
    policy: str
    rank: int
    rate: float
    seed: int


@dataclass(frozen=True)
class Neutrality:
    """How one policy serves all ranks of a task, from validation losses in nats (means over seeds).

    ``best`` maps rank to its best rate. ``steps`` is the largest distance of two best rates on the grid.
    ``common`` is the rate with the least mean loss over ranks, and ``regret`` the mean over ranks of the loss
    added by training at that rate and not at the rank's own best.
    """

    best: dict[int, float]
    steps: int
    common: float
    regret: float


def mean_losses(losses: Mapping[Cell, float]) -> dict[str, dict[str, dict[int, dict[float, float]]]]:
    """Mean over seeds: task → policy → rank → rate → nats. Policies share the runs of equal scales.

    A rate at which any seed diverged has an infinite mean.
    """
    by_scale: dict[tuple[str, int, float, float], list[float]] = {}
    for cell, loss in losses.items():
        key = (cell.task, cell.rank, AdapterScale(policy=cell.policy).of(cell.rank), cell.rate)
        by_scale.setdefault(key, []).append(loss)
    table: dict[str, dict[str, dict[int, dict[float, float]]]] = {}
    for policy in SCALE_POLICIES:
        for (task, rank, scale, rate), each in sorted(by_scale.items()):
            if AdapterScale(policy=policy).of(rank) == scale:
                ranks = table.setdefault(task, {}).setdefault(policy, {})
                ranks.setdefault(rank, {})[rate] = mean(each)
    return table


def neutrality(by_rank: Mapping[int, Mapping[float, float]]) -> Neutrality | None:
    """The figures of one policy; None while a rank lacks a rate, or where every rate of a rank diverged."""
    rates = sorted({rate for losses in by_rank.values() for rate in losses})
    if any(
        set(losses) != set(rates) or not math.isfinite(min(losses.values())) for losses in by_rank.values()
    ):
        return None
    best = {rank: min(rates, key=losses.__getitem__) for rank, losses in by_rank.items()}
    places = [rates.index(rate) for rate in best.values()]
    common = min(rates, key=lambda rate: mean(losses[rate] for losses in by_rank.values()))
    regret = mean(losses[common] - losses[best[rank]] for rank, losses in by_rank.items())
    return Neutrality(best, max(places) - min(places), common, regret)


def write_report(losses: Mapping[Cell, float], folder: Path, steps: Mapping[Cell, int | None]) -> None:
    """Write ``index.md``, ``rank-rates.json`` and the figure (SVG, PNG) of ``losses`` into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    table = mean_losses(losses)
    (folder / "rank-rates.json").write_text(json.dumps(_data(losses, table), indent=1) + "\n")
    (folder / "index.md").write_text(_page(table, losses, steps))
    if losses:
        chart = figure(table)
        chart.save(str(folder / "rank-rates.svg"))
        chart.save(str(folder / "rank-rates.png"), scale_factor=2)


def _data(losses: Mapping[Cell, float], table: Mapping[str, Any]) -> dict[str, Any]:
    runs = [{**cell._asdict(), "val_loss": _finite(loss)} for cell, loss in sorted(losses.items())]
    found = {
        task: {policy: _neutral_data(by_rank) for policy, by_rank in policies.items()}
        for task, policies in table.items()
    }
    return {"unit": "nats of validation loss; null: diverged", "runs": runs, "policies": found}


def _neutral_data(by_rank: Mapping[int, Mapping[float, float]]) -> dict[str, Any] | None:
    found = neutrality(by_rank)
    return None if found is None else {**vars(found), "regret": _finite(found.regret)}


def _finite(loss: float) -> float | None:
    return loss if math.isfinite(loss) else None


def _page(table: Mapping[str, Any], losses: Mapping[Cell, float], steps: Mapping[Cell, int | None]) -> str:
    parts = [
        "# Best learning rate by rank and scale policy",
        "[Decision 28](../../decisions/028-scale-policy.md) has the conclusion. Written by "
        "`benchmarks/rank_rate.py`. Uniform rank, 16-bit base, validation loss in nats after the last step, "
        "mean over seeds. A policy is neutral if the best rates of all ranks are at most one step of the √10 "
        "grid apart. *Added at one rate*: mean loss that the ranks lose if all train at the best common "
        "rate.",
    ]
    for task, policies in table.items():
        of_task = [cell for cell in losses if cell.task == task]
        seeds = ", ".join(str(seed) for seed in sorted({cell.seed for cell in of_task}))
        lengths = ", ".join(str(count) for count in sorted({steps[cell] or 0 for cell in of_task}))
        parts += [
            f"## {task}",
            f"{lengths} steps, seeds {seeds}.",
            _best_table(policies),
            _loss_table(policies),
        ]
    if losses:
        parts.append("![validation loss against learning rate](rank-rates.svg)")
    return "\n\n".join(parts) + "\n"


def _best_table(policies: Mapping[str, Mapping[int, Mapping[float, float]]]) -> str:
    ranks = sorted({rank for by_rank in policies.values() for rank in by_rank})
    head = [
        "policy",
        *(f"best at rank {rank}" for rank in ranks),
        "apart (steps)",
        "common rate",
        "added at one rate",
    ]
    rows = []
    for policy, by_rank in policies.items():
        found = neutrality(by_rank)
        if found is None:
            rows.append([f"`{policy}`", *["incomplete"] * (len(head) - 1)])
            continue
        best = [f"{found.best[rank]:.2g} ({by_rank[rank][found.best[rank]]:.4f})" for rank in ranks]
        rows.append([f"`{policy}`", *best, str(found.steps), f"{found.common:.2g}", _loss(found.regret)])
    return _table(head, rows)


def _loss_table(policies: Mapping[str, Mapping[int, Mapping[float, float]]]) -> str:
    rates = sorted({rate for by_rank in policies.values() for losses in by_rank.values() for rate in losses})
    rows = []
    for policy, by_rank in policies.items():
        for rank, losses in sorted(by_rank.items()):
            cells = [_loss(losses[rate]) if rate in losses else "–" for rate in rates]
            rows.append([f"`{policy}`", str(rank), *cells])
    return _table(["policy", "rank", *(f"{rate:.2g}" for rate in rates)], rows)


def _loss(nats: float) -> str:
    return f"{nats:.4f}" if math.isfinite(nats) else "diverged"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def figure(table: Mapping[str, Any]) -> alt.VConcatChart:
    """Loss against rate, a line for each rank: policies side by side, a row for each task."""
    return alt.vconcat(*(_of_task(task, policies) for task, policies in table.items()))


def _of_task(task: str, policies: Mapping[str, Mapping[int, Mapping[float, float]]]) -> alt.FacetChart:
    rows = [
        {"policy": policy, "rank": f"{rank}", "rate": rate, "loss": loss}
        for policy, by_rank in policies.items()
        for rank, losses in by_rank.items()
        for rate, loss in losses.items()
        if math.isfinite(loss)
    ]
    ranks = sorted({row["rank"] for row in rows}, key=int)  # type: ignore[call-overload]
    axis = alt.Axis(values=sorted({row["rate"] for row in rows}), format=".1g", labelAngle=-45)
    lines = (
        alt.Chart(pd.DataFrame(rows))
        .mark_line(point=True)
        .encode(
            x=alt.X("rate:Q", title="learning rate", scale=alt.Scale(type="log"), axis=axis),
            y=alt.Y("loss:Q", title="validation loss (nats)", scale=alt.Scale(zero=False)),
            color=alt.Color("rank:N", sort=ranks, title="rank"),
        )
        .properties(width=150, height=150)
    )
    return lines.facet(column=alt.Column("policy:N", sort=list(SCALE_POLICIES), title=None), title=task)
