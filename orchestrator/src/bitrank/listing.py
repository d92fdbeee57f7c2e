"""``bitrank list``: every run of the matrix, where it stands and what it would cost. Makes no store and loads no model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from rich.table import Table

from bitrank.specs import RunSpec
from bitrank.store import open_store, store_uri
from bitrank.tracking import State, Tracker, state_of


def rows(specs: Sequence[RunSpec], store: str) -> list[dict[str, Any]]:
    """One plain row per spec. ``seconds`` is what the run took, or the median of complete runs of its task; None if unknown."""
    states = _states(specs, store)
    took = [(spec.task, state.figures["time/total_s"]) for spec, state in zip(specs, states, strict=True) if state.figures]
    listed = []
    for spec, state in zip(specs, states, strict=True):
        same = [seconds for task, seconds in took if task == spec.task]
        seconds = state.figures.get("time/total_s") or (median(same) if same else None)
        length = f"{spec.steps} steps" if spec.steps else f"{spec.epochs} epochs"
        listed.append(
            {"run": spec.run_name, "spec_id": spec.spec_id, "state": state.name, "model": spec.model,
             "training": f"{length} of {spec.batch_size}", "seconds": seconds, "note": state.note}
        )  # fmt: skip
    return listed


def table(listed: Sequence[dict[str, Any]]) -> Table:
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for head in ("run", "spec_id", "state", "model", "training", "about"):
        shown.add_column(head, no_wrap=True)
    for row in listed:
        about = f"{row['seconds']:.0f} s" if row["seconds"] else "not known yet"
        shown.add_row(row["run"], row["spec_id"], row["state"], row["model"], row["training"], about)
    return shown


def _states(specs: Sequence[RunSpec], store: str) -> list[State]:
    uri = store_uri(store)
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        return [State("new")] * len(specs)  # nothing was run yet: no store is made just to look
    runs = Tracker(open_store(store), store, specs[0].profile).runs()
    return [state_of(spec, runs) for spec in specs]
