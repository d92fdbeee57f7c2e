"""The cost of a search, counted: how many distinct plans were really evaluated, and how long that took."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bitrank_planner.errors import PlanError
from bitrank_planner.journal import Entry, Journal, least
from bitrank_planner.problem import Plan, Problem


@dataclass(frozen=True)
class Found:
    """The best plan evaluated, its loss in nats, and what finding it cost: distinct plans evaluated and seconds spent in them.

    Evaluations that came from a journal count in full, so a resumed search reports what an uninterrupted one does.
    """

    plan: Plan
    value: float
    evaluations: int
    seconds: float


class EvaluationBudget:
    """Evaluates choices until ``evaluations`` distinct plans are seen, or ``patience`` proposals in a row brought nothing new.

    Raises :class:`PlanError` when fewer than one evaluation is allowed or trainable numbers are limited (the searches mend plans by
    bytes alone), :class:`~bitrank_planner.Infeasible` when nothing fits.
    """

    def __init__(
        self,
        solver: str,
        problem: Problem,
        evaluate: Callable[[Plan], float],
        evaluations: int,
        journal: Path | None,
        patience: int,
    ) -> None:
        if evaluations < 1:
            raise PlanError(f"{solver} was given {evaluations} evaluations; expected 1 or more")
        if problem.max_trainable is not None:
            raise PlanError(
                f"{solver} knows one limit, bytes; for a limit on trainable numbers use the solver 'exact'"
            )
        problem.check_feasible()
        self._solver = solver
        self._problem = problem
        self._evaluate = evaluate
        self._journal = Journal(problem, journal)
        self._seen: dict[tuple[int, ...], Entry] = {}
        self._evaluations = evaluations
        self._patience = patience
        self.repeats = 0

    @property
    def going(self) -> bool:
        """Whether another plan may be evaluated and is likely to be found."""
        return len(self._seen) < self._evaluations and self.repeats < self._patience

    @property
    def spent(self) -> float:
        """The share of the evaluations that is used up, 0 to 1."""
        return len(self._seen) / self._evaluations

    def has(self, choices: Sequence[int]) -> bool:
        """Whether this search saw the plan before."""
        return tuple(choices) in self._seen

    def value(self, choices: Sequence[int]) -> float:
        """The loss of the plan with these choices, infinite when it has no finite one. A plan seen before costs nothing."""
        plan = self._problem.plan(choices, self._solver)
        if plan.choices in self._seen:
            self.repeats += 1
            return self._seen[plan.choices].value
        if not self._problem.fits(
            plan
        ):  # whatever Optuna's experimental interface becomes, this is never measured in silence
            raise PlanError(
                f"{self._solver} proposed {plan.nbytes:,} bytes, above {self._problem.budget:,}: report this as a fault"
            )
        value = self._journal.evaluate(plan, self._evaluate)
        entry = self._journal.recorded(plan)
        self._seen[plan.choices] = Entry(plan, value, entry.seconds if entry else 0.0)
        self.repeats = 0
        return value

    def found(self) -> Found:
        """The best of what was evaluated. Raises :class:`PlanError` when nothing had a finite loss."""
        entries = list(self._seen.values())
        best = least(entries)
        return Found(best.plan, best.value, len(entries), math.fsum(entry.seconds for entry in entries))
