"""``bitrank list``: every run of the matrix, where it stands and what it would cost. Makes no store and loads no model."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from rich.table import Table

from bitrank.specs import RunSpec
from bitrank.states import State, read_runs, state_of
from bitrank.store import Store, check_file


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
    database, profile = Store.parse(store).database, specs[0].profile
    if database is None:
        from bitrank.store import open_store
        from bitrank.tracking import Tracker

        runs = Tracker(open_store(store), store, profile).runs()
    else:
        check_file(database)
        runs = read_runs(database, f"bitrank-{profile}") if database.exists() else {}
    return [state_of(spec, runs) for spec in specs]
