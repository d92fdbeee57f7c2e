"""The learning rates of a study's runs: execute the runs of the grid, and choose by them."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence

from bitrank.cli.display import Progress
from bitrank.execution.matrix import Options, open_jobs, run_study
from bitrank.planning.learning_rates import (
    Cell,
    at_factor,
    cell_of,
    choose_rates,
    grid_specs,
    missing,
    rate_rows,
    with_rates,
)
from bitrank.planning.planner_studies import PlannerStudy
from bitrank.planning.study_plans import longer_cells, trained_longer
from bitrank.planning.study_records import record_rates
from bitrank.spec.inputs import resolve_hub_digests
from bitrank.spec.run_spec import RunSpec
from bitrank.tracking.run_state import StoredRun


@dataclasses.dataclass(frozen=True)
class Grid:
    """The runs of the grid with the digests of hub models, and the stored runs by spec id.

    ``elsewhere`` are the ids of runs that another process is executing.
    """

    specs: Sequence[RunSpec]
    runs: Mapping[str, StoredRun]
    elsewhere: Collection[str]


def tuned_specs(
    specs: list[RunSpec], study: PlannerStudy, options: Options
) -> tuple[list[RunSpec], dict[Cell, float], dict[Cell, str]]:
    """Return ``specs`` at the learning rates and lengths that follow from the runs of the grid.

    The second value is the seconds of these runs by config and task, the third the reason by config and task
    that is left out because its grid is not complete. Executes the missing runs of the grid. A grid of one
    rate needs no run.
    """
    longer = longer_cells(specs, study)
    is_tuned = len(study.rates) > 1
    if len(study.rates) == 1:
        specs = at_factor(specs, study.rates[0])
    measured = specs if is_tuned else [spec for spec in specs if cell_of(spec) in longer]
    if not measured:
        return specs, {}, {}
    grid = _executed(grid_specs(measured, study.rates if is_tuned else (1.0,)), study.walks, options)
    chosen = choose_rates(grid.specs, grid.runs, study.walks)
    record_rates(options.results / "rates.json", rate_rows(chosen))
    left_out = {
        cell: reason_left_out(cell, grid, study.walks)
        for cell in sorted({cell_of(spec) for spec in measured} - chosen.keys())
    }
    for cell, reason in left_out.items():
        print(f"{cell[0]} on {cell[1]} is left out: {reason}")
    kept = [spec for spec in specs if cell_of(spec) not in left_out]
    tuned = with_rates(kept, chosen) if is_tuned else kept
    lengthened = [
        trained_longer(spec, longer[cell_of(spec)], chosen[cell_of(spec)].seconds_per_step)
        if cell_of(spec) in longer
        else spec
        for spec in tuned
    ]
    return lengthened, {cell: choice.seconds for cell, choice in chosen.items()}, left_out


def reason_left_out(cell: Cell, grid: Grid, walks: bool) -> str:
    """Return why no learning rate can be chosen for ``cell``, and what to do."""
    due = missing([spec for spec in grid.specs if cell_of(spec) == cell], grid.runs, walks)
    if not due:
        return "training diverged at every learning rate of its grid; give lower factors with --rates"
    if all(spec.spec_id in grid.elsewhere for spec in due):
        return (
            "its grid of learning rates is not complete yet, another bitrank process is running "
            f"{len(due)} of its runs; repeat the command when they have ended"
        )
    return "a run of its grid of learning rates failed; repeat the command"


def _executed(grid: Sequence[RunSpec], walks: bool, options: Options) -> Grid:
    """Execute the runs of ``grid`` that a choice needs. A run that fails is not tried again."""
    grid = [resolve_hub_digests(spec) for spec in grid]
    options = dataclasses.replace(options, results=options.results / "rates")
    runs: dict[str, StoredRun] = {}
    tried: set[str] = set()
    elsewhere: set[str] = set()
    while due := [spec for spec in missing(grid, runs, walks) if spec.spec_id not in tried]:
        done = run_study(due, options, Progress)
        elsewhere |= {job.spec.spec_id for job in done if job.status == "locked"}
        tried |= {spec.spec_id for spec in due}
        tracker, _ = open_jobs(grid, options)
        runs = dict(tracker.runs())
    return Grid(grid, runs, elsewhere)
