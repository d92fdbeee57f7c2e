"""Budget of a search: the number of distinct plans evaluated and the seconds spent on them."""

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
    """The best plan evaluated, its loss in nats, the number of distinct plans evaluated and their seconds.

    Evaluations read from a journal count in full, so a resumed search reports the same numbers as an
    uninterrupted one.
    """

    plan: Plan
    value: float
    evaluations: int
    seconds: float


class EvaluationBudget:
    """Evaluate choices until enough distinct plans are known or proposals stop being new.

    The limits are ``evaluations`` distinct plans and ``patience`` proposals in a row that are not new. Raises
    :class:`PlanError` for fewer than one evaluation, ties or a limit on trainable numbers (the searches
    repair plans by bytes alone), and :class:`~bitrank_planner.Infeasible` if no plan fits.
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
        if problem.ties:
            raise PlanError(f"{solver} cannot tie formats; use the solver 'exact' or 'greedy'")
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
        """Whether evaluations remain and a new plan is likely to be found."""
        return len(self._seen) < self._evaluations and self.repeats < self._patience

    @property
    def spent(self) -> float:
        """Share of the evaluations used, 0 to 1."""
        return len(self._seen) / self._evaluations

    def has(self, choices: Sequence[int]) -> bool:
        """Whether this search has evaluated the plan."""
        return tuple(choices) in self._seen

    def value(self, choices: Sequence[int]) -> float:
        """The loss of the plan with these choices, infinite if not finite; a known plan costs nothing."""
        plan = self._problem.plan(choices, self._solver)
        if plan.choices in self._seen:
            self.repeats += 1
            return self._seen[plan.choices].value
        # Optuna's interface is experimental; a change in it must not lead to an evaluation above the budget.
        if not self._problem.fits(plan):
            raise PlanError(
                f"{self._solver} proposed {plan.nbytes:,} bytes, above {self._problem.budget:,}: report this "
                "as a fault"
            )
        value = self._journal.evaluate(plan, self._evaluate)
        entry = self._journal.recorded(plan)
        self._seen[plan.choices] = Entry(plan, value, entry.seconds if entry else 0.0)
        self.repeats = 0
        return value

    def found(self) -> Found:
        """The best evaluated plan. Raises :class:`PlanError` if no loss is finite."""
        entries = list(self._seen.values())
        best = least(entries)
        return Found(best.plan, best.value, len(entries), math.fsum(entry.seconds for entry in entries))
