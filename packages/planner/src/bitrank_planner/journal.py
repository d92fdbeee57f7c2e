"""Journal of evaluated plans, one JSON line each, from which an interrupted search resumes.

A search that runs again reads its earlier evaluations from the journal, proposes the same plans and continues
with the next one. The first line holds the fingerprint of the problem. Each further line is one evaluated
plan, written after its value is known. A journal has one writing process at a time.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitrank_planner.errors import PlanError
from bitrank_planner.problem import Plan, Problem


@dataclass(frozen=True)
class Entry:
    """One evaluation: the plan, its loss in nats (infinite if not finite) and the seconds it took."""

    plan: Plan
    value: float
    seconds: float


class Journal:
    """Evaluations of plans of one problem, kept in memory and, if ``path`` is given, in that file.

    A last line without a line end, as a killed process leaves it, is removed. Raises :class:`PlanError` for
    the journal of another problem (other matrices, options, costs or limits) and for a damaged line.
    """

    def __init__(self, problem: Problem, path: Path | None = None) -> None:
        self._problem = problem
        self._path = path
        self._entries: dict[tuple[tuple[str, int], ...], Entry] = {}
        if path is not None:
            self._open(path)

    def evaluate(self, plan: Plan, evaluate: Callable[[Plan], float]) -> float:
        """Return the recorded value of ``plan``, or call ``evaluate(plan)``, time it and record it.

        Plans are compared by formats and ranks. A value that is not finite is recorded as null and returned
        as infinity. If ``evaluate`` raises an exception, nothing is recorded.
        """
        entry = self.recorded(plan)
        if entry is None:
            start = time.perf_counter()
            value = float(evaluate(plan))
            entry = Entry(plan, value if math.isfinite(value) else math.inf, time.perf_counter() - start)
            self._append(_line(entry))
            self._entries[self._key(plan)] = entry
        return entry.value

    def recorded(self, plan: Plan) -> Entry | None:
        """The evaluation of ``plan``, or None."""
        return self._entries.get(self._key(plan))

    @property
    def count(self) -> int:
        """Number of distinct plans evaluated, failed ones included."""
        return len(self._entries)

    @property
    def seconds(self) -> float:
        """Total duration of all evaluations, those of earlier runs included."""
        return math.fsum(entry.seconds for entry in self._entries.values())

    def best(self) -> Entry:
        """The evaluation of least value, the earliest on ties.

        Raises :class:`PlanError` if no value is finite.
        """
        return least(list(self._entries.values()))

    def _key(self, plan: Plan) -> tuple[tuple[str, int], ...]:
        return tuple(
            (plan.precision[item.name], plan.ranks.get(item.name, 0)) for item in self._problem.items
        )

    def _open(self, path: Path) -> None:
        text = path.read_bytes() if path.exists() else b""
        whole = text.rfind(b"\n") + 1
        if whole < len(text):
            with path.open("r+b") as file:
                file.truncate(whole)
        head, *lines = text[:whole].decode().splitlines() or [""]
        if not head:
            self._append({"problem": _fingerprint(self._problem)})
        elif _parsed(path, 1, head).get("problem") != _fingerprint(self._problem):
            raise PlanError(
                f"{path} is the journal of another problem (other matrices, options, costs or limits); give "
                "another path"
            )
        for number, line in enumerate(lines, 2):
            self._read(path, number, _parsed(path, number, line))

    def _read(self, path: Path, number: int, record: dict[str, Any]) -> None:
        try:
            plan = self._problem.plan(record["choices"], "journal")
            value = math.inf if record["value"] is None else float(record["value"])
            self._entries[self._key(plan)] = Entry(plan, value, float(record["seconds"]))
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise _damaged(path, number) from error

    def _append(self, record: dict[str, Any]) -> None:
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")


def least(entries: list[Entry]) -> Entry:
    """The first entry of least value. Raises :class:`PlanError` if no value is finite."""
    best = min(entries, key=lambda entry: entry.value, default=None)
    if best is None or not math.isfinite(best.value):
        raise PlanError(
            f"none of {len(entries)} evaluated plans gave a finite loss: evaluate more plans, or give a "
            "larger budget"
        )
    return best


def _line(entry: Entry) -> dict[str, Any]:
    value = entry.value if math.isfinite(entry.value) else None
    return {"choices": list(entry.plan.choices), "value": value, "seconds": entry.seconds}


def _parsed(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise _damaged(path, number) from error
    if not isinstance(record, dict):
        raise _damaged(path, number)
    return record


def _damaged(path: Path, number: int) -> PlanError:
    return PlanError(
        f"line {number} of {path} is no record of an evaluation; mend or remove that line, or give another "
        "path"
    )


def _fingerprint(problem: Problem) -> str:
    """SHA-256 of the problem.

    It covers the costs: equal names with other costs most likely come from another model, whose recorded
    values would be wrong.
    """
    items = [
        [i.name, [[o.format, o.rank, o.nbytes, o.cost, o.trainable] for o in i.options]]
        for i in problem.items
    ]
    text = json.dumps([items, problem.budget, problem.fixed, problem.max_trainable])
    return hashlib.sha256(text.encode()).hexdigest()
