"""Make the plan of ``bitrank plan``: measure, build the problem, run the planner."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from bitrank_data import cache_dir
from bitrank_planner import Effort, Plan, Problem
from bitrank_trainer import pin_threads
from filelock import FileLock

from bitrank.errors import UserError, unknown
from bitrank.planning.budget import NOTHING_TRAINS, Sizes, parse_budget, sizes_of
from bitrank.planning.costs import Choices, by_fisher, make_problem
from bitrank.planning.interactions import calibrate_costs
from bitrank.planning.learning import add_learning
from bitrank.planning.planners import PLANNERS, by_cost, plan_by, planner_names
from bitrank.planning.race import candidates
from bitrank.planning.restrictions import check_ties, restricted, ties_for
from bitrank.planning.short_runs import SearchLimits, race, search
from bitrank.sensitivity.measure import measure, measured_formats
from bitrank.sensitivity.tables import Tables
from bitrank.spec.learning import learning_cost
from bitrank.spec.provenance import code_hash
from bitrank.spec.races import RACES
from bitrank.spec.run_spec import RunSpec

Pin = tuple[str | None, int | None]  # format, rank; None leaves the choice to the planner


@dataclass(frozen=True)
class PlanRequest:
    """A request for a plan.

    ``planner`` is one of :func:`~bitrank.planning.planners.planner_names`, ``budget`` a text for
    :func:`parse_budget`, and ``pins`` are pairs of a part of a module's name and its choice. A search may
    evaluate ``evaluations`` plans of ``steps`` optimizer steps each; the exact planner may run for
    ``seconds``. ``ties`` and ``runtime`` are names of :mod:`bitrank.planning.restrictions`, ``learning`` is
    one of :data:`~bitrank.spec.learning.LEARNING`. ``draw`` is the number of a random plan.
    """

    budget: str
    planner: str = "exact"
    choices: Choices = field(default_factory=Choices)
    max_trainable: int | None = None
    pins: Sequence[tuple[str, Pin]] = ()
    evaluations: int = 24
    steps: int = 10
    seconds: float = Effort.seconds
    ties: tuple[str, ...] = ()
    runtime: str = "any"
    learning: str = "none"
    draw: int = 0


@dataclass(frozen=True)
class PlanResult:
    """A plan, its problem, and the sizes and tables that it was computed from.

    ``choosing`` is the seconds of planning, with the calibration of costs and the probe if they ran.
    ``trained_loss`` is the validation loss in nats by which a search or a race chose the plan; None if
    nothing was trained.
    """

    plan: Plan
    problem: Problem
    sizes: Sizes
    tables: Tables
    choosing: float
    trained_loss: float | None = None

    @property
    def seconds(self) -> float:
        """Total seconds of measuring and choosing."""
        return self.tables.seconds + self.choosing


def make_plan(
    spec: RunSpec, request: PlanRequest, on_progress: Callable[[str], None] = lambda _: None
) -> PlanResult:
    """Measure the model (or read cached tables), build the problem, and solve it.

    Raises :class:`UserError` for an invalid request, and :class:`~bitrank_planner.PlanError` if no plan fits
    the budget.
    """
    check_request(request)
    pin_threads(spec.threads)
    sizes = sizes_of(spec)
    parse_budget(request.budget, sizes)  # an invalid one is an error before the measurement
    tables = measure(spec, on_progress, measured_formats(request.choices.formats, spec.quantizer))
    return plan_from_tables(spec, request, sizes, tables, on_progress)


def plan_from_tables(
    spec: RunSpec,
    request: PlanRequest,
    sizes: Sizes,
    tables: Tables,
    on_progress: Callable[[str], None] = lambda _: None,
) -> PlanResult:
    """Build the problem from measured ``tables`` and solve it; raises the errors of :func:`make_plan`."""
    budget = parse_budget(request.budget, sizes)
    problem, calibrating = _problem(tables, sizes, budget, request), 0.0
    bases, effort = [problem], Effort(request.seconds)
    if by_cost(request.planner):
        bases.append(_problem(by_fisher(tables), sizes, budget, request))
        problem, calibrating = calibrate_costs(
            (bases[0], bases[1]),
            tables,
            spec,
            request.choices.repairs,
            on_progress,
            effort,
        )
        if learning_cost(request.learning).trains:
            repairs = request.choices.repairs
            problem, probing = add_learning(problem, tables, spec, repairs, on_progress, effort)
            calibrating += probing
    started = time.monotonic()
    if request.planner in PLANNERS:
        plan = plan_by(request.planner, problem, tables, effort, request.draw)
        _check_trainable(plan, sizes)
        return PlanResult(plan, problem, sizes, tables, calibrating + time.monotonic() - started)
    limits = SearchLimits(request.planner, request.evaluations, request.steps, request.choices.repairs)
    journal = _journal(problem, spec, request)
    # Two arms of a study may need the same search: the second one waits, and reads it from the journal.
    with FileLock(journal.with_suffix(".lock")):
        if request.planner in RACES:
            plans = candidates(request.planner, [problem, *bases], request.seconds)
            calibrating += time.monotonic() - started
            found = race(limits, plans, problem, spec, tables, journal, on_progress)
        else:
            found = search(limits, problem, spec, tables, journal, on_progress)
    chosen = replace(found.plan, solver=request.planner)
    return PlanResult(chosen, problem, sizes, tables, calibrating + found.seconds, found.value)


def check_request(request: PlanRequest) -> None:
    """Raise :class:`UserError` for an unknown planner, and for ties or a cost of learning that it ignores."""
    check_planner(request.planner, ties_for(request.runtime, request.ties))
    _check_learning(request)


def check_planner(name: str, ties: Sequence[str] = ()) -> None:
    """Raise :class:`UserError` unless a planner is called ``name`` and can keep ``ties``."""
    names = planner_names()
    if name not in names:
        raise unknown("planner", name, names)
    check_ties(ties)
    able = [planner for planner, entry in PLANNERS.items() if entry.keeps_ties]
    if ties and name not in able:
        raise UserError(f"the planner {name!r} cannot tie formats; use one of {', '.join(able)}")


def _check_learning(request: PlanRequest) -> None:
    """Raise :class:`UserError` if the planner would ignore the requested cost of learning."""
    if learning_cost(request.learning).trains and not by_cost(request.planner):
        able = ", ".join(name for name in planner_names() if by_cost(name))
        raise UserError(
            f"the planner {request.planner!r} does not minimise predicted loss, so the costs of learning "
            f"{request.learning!r} would change nothing; use one of {able}, or leave out --learning"
        )


def _check_trainable(plan: Plan, sizes: Sizes) -> None:
    """Raise :class:`UserError` for a plan with rank 0 everywhere, unless the model has a new head to
    train."""
    if not plan.ranks and not sizes.outline.trained:
        raise UserError(NOTHING_TRAINS)


def _problem(tables: Tables, sizes: Sizes, budget: int, request: PlanRequest) -> Problem:
    """Return the problem with its pins: costs are calibrated at plans that keep them."""
    problem = make_problem(tables, sizes, budget, request.choices, request.max_trainable)
    problem = restricted(problem, request.runtime, request.ties)
    return problem.pinned(match_pins(request.pins, [item.name for item in problem.items]))


def _journal(problem: Problem, spec: RunSpec, request: PlanRequest) -> Path:
    """Return the path of a search's journal.

    The name contains a hash of everything that the evaluations depend on, so a different request starts a new
    search.
    """
    code = code_hash("bitrank.planning.short_runs", rules=frozenset({"GivenRanks"}))
    trained = (request.evaluations, request.steps, request.choices.repairs)
    key_parts = f"{problem!r} {spec.spec_id} {trained} {code}"
    key = hashlib.sha256(key_parts.encode()).hexdigest()[:16]
    folder = cache_dir() / "searches"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{request.planner}-{Path(spec.model).name}-{spec.task_name}-{key}.jsonl"


def match_pins(pins: Iterable[tuple[str, Pin]], names: list[str]) -> dict[str, Pin]:
    """Return pins by full matrix name; a pin applies to every matrix whose name contains its part.

    Of two pins for a matrix, the later one replaces what it gives itself: a format, a rank, or both. Raises
    :class:`UserError` if a part matches no matrix.
    """
    whole: dict[str, Pin] = {}
    for part, (fmt, rank) in pins:
        hits = [name for name in names if part in name]
        if not hits:
            raise UserError(f"no matrix has {part!r} in its name; names look like {', '.join(names[:3])}")
        for name in hits:
            before = whole.get(name, (None, None))
            whole[name] = (before[0] if fmt is None else fmt, before[1] if rank is None else rank)
    return whole
