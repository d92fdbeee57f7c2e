"""``bitrank study``: compare planners, or published systems, at equal bytes."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitrank_data import write_atomically

from bitrank.cli.arguments import comma_separated, factors, file_path, location, seeds, whole
from bitrank.cli.help import list_names, studies, study_arms
from bitrank.cli.notes import add_folder, keep_findings
from bitrank.cli.options import WANDB
from bitrank.execution.registry import add_options as add_executor
from bitrank.execution.registry import execution
from bitrank.spec.parse import parse_setting
from bitrank.spec.profiles import Profile, find_profile
from bitrank.spec.run_spec import RunSpec

if TYPE_CHECKING:
    from bitrank.execution.matrix import Options
    from bitrank.planning.learning_rates import Cell
    from bitrank.planning.planner_studies import PlannerStudy
    from bitrank.tracking.run_state import StoredRun

EXAMPLES = """examples:
  bitrank study allocators --quick              one seed, one budget, a third of the steps, small searches
  bitrank study allocators --forecast           the hours that the whole study takes here
  bitrank study allocators                      three budgets, three seeds, all arms, five learning rates each
  bitrank study systems --quick                 published systems at the bytes of B-Q4, one seed
  bitrank study systems --arms Plan-Q4,B-Q4,QA-LoRA-Q4 --budgets 3.5bits
  bitrank study frozen-rank --tasks movie_sentences
  bitrank study three-bits --quick
To continue an interrupted study, repeat the command. The report is RESULTS/NAME/report.md,
with --quick RESULTS/NAME-quick/report.md."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``bitrank study``."""
    list_names(parser.add_argument("name", help="name of the study"), studies)
    parser.add_argument(
        "--quick", action="store_true", help="one seed, one budget, a third of the steps, small searches"
    )
    parser.add_argument(
        "--profile", default="laptop", help="profile of tasks, models and settings (default: laptop)"
    )
    parser.add_argument("--tasks", type=comma_separated, help="comma-separated")
    parser.add_argument("--budgets", type=comma_separated, help="comma-separated")
    arms = parser.add_argument(
        "--arms",
        type=comma_separated,
        help="comma-separated planners, arms and configs, each at every budget; configs in 16 bits are "
        "trained at their own bytes",
    )
    list_names(arms, study_arms)
    parser.add_argument("--seeds", type=seeds, help="comma-separated")
    parser.add_argument("--evaluations", type=whole(), help="maximum plans that a search evaluates")
    parser.add_argument(
        "--rates",
        type=factors,
        help="comma-separated factors on the profile's learning rate: each arm is trained with the one of "
        "least validation loss, found with a seed of its own; a single factor is used without a search",
    )
    parser.add_argument("--forecast", action="store_true", help="print the hours of the study and end")
    parser.add_argument(
        "--store", type=location, default="runs", help="folder or MLflow URI of the runs (default: runs)"
    )
    parser.add_argument(
        "--results",
        type=file_path,
        default=Path("results"),
        help="folder for plans, tables and the report (default: results)",
    )
    add_executor(parser)
    parser.add_argument(
        "--jobs", type=whole(), help="parallel runs (default: as many as cores and memory allow)"
    )
    parser.add_argument("--wandb", action="store_true", help=WANDB)
    add_folder(parser)
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="setting of every run"
    )


def act(arguments: argparse.Namespace, report: Callable[..., str]) -> int:
    """Forecast, plan, choose learning rates, execute missing runs, and print the report of ``report``."""
    how = execution(arguments, arguments.jobs)
    from bitrank.cli.display import Progress
    from bitrank.cli.matrix import show
    from bitrank.execution.matrix import Options, run_study
    from bitrank.planning.planner_studies import profile_of
    from bitrank.planning.study_plans import planning_costs, study_specs

    study = _study(arguments)
    if arguments.wandb:  # planning may take hours, so missing requirements are reported first
        from bitrank.tracking.wandb_tracker import check

        check()
    base = find_profile(arguments.profile)
    profile = profile_of(arguments.name, base, arguments.quick)
    folder = arguments.results / profile.name
    settings = dict(parse_setting(text) for text in arguments.set)
    tasks = arguments.tasks or list(base.tasks)
    jobs = arguments.jobs or _slots(profile, tasks)
    _print_forecast(study, profile, tasks, settings, arguments.store, jobs)
    if arguments.forecast:
        return 0
    planned = study_specs(study, profile, tasks, settings, folder / "plans", jobs)
    options = Options(arguments.store, folder, how)
    tuned, rate_seconds = _tuned(planned.specs, study, options)
    done = run_study(tuned, options, Progress)
    show(done, options)
    costs = {"plans": planning_costs(tuned, rate_seconds), "left_out": planned.left_out}
    write_atomically(folder / "planning.json", json.dumps(costs, indent=1))
    reference = [f"{study.reference}-{budget.lstrip('=')}" for budget in study.budgets]
    print(report(arguments.store, f"bitrank-{profile.name}", reference, folder / "planning.json", folder))
    keep_findings(arguments.store, profile.name, arguments.notes)
    is_whole = len(tuned) == len(planned.specs) and all(
        job.status in {"finished", "done", "stale"} for job in done
    )
    return 0 if is_whole else 1


def _study(arguments: argparse.Namespace) -> PlannerStudy:
    """The study that the arguments describe."""
    from bitrank.planning.planner_studies import SIXTEEN_BITS, find_study
    from bitrank.planning.study_plans import check_arms

    given: dict[str, Any] = {
        key: value if isinstance(value, int) else tuple(value)
        for key in ("budgets", "arms", "seeds", "evaluations", "rates")
        if (value := getattr(arguments, key))
    }
    if arguments.rates:
        given["walks"] = False  # rates that were asked for are all tried
    if arguments.arms:
        check_arms(arguments.arms)
        given["arms"] = tuple(name for name in arguments.arms if name not in SIXTEEN_BITS)
        given["configs"] = tuple(name for name in arguments.arms if name in SIXTEEN_BITS)
    return dataclasses.replace(find_study(arguments.name, arguments.quick), **given)


def _slots(profile: Profile, tasks: Sequence[str]) -> int:
    """Runs at the same time that cores and memory allow."""
    from bitrank_data import open_task

    from bitrank.execution.local import choose_slots

    sample = [
        RunSpec("B-FP", task, "", threads=profile.fields_for(open_task(task).kind, task).get("threads"))
        for task in tasks
    ]
    return choose_slots(sample)


def _print_forecast(
    study: PlannerStudy,
    profile: Profile,
    tasks: Sequence[str],
    settings: dict[str, Any],
    store: str,
    jobs: int,
) -> None:
    from bitrank.planning.study_forecast import forecast_lines, forecast_study

    for line in forecast_lines(forecast_study(study, profile, tasks, settings, store), jobs):
        print(line, flush=True)


def _tuned(
    specs: list[RunSpec], study: PlannerStudy, options: Options
) -> tuple[list[RunSpec], dict[Cell, float]]:
    """``specs`` at the learning rates and lengths that follow from the runs of the grid.

    The second value is the seconds of these runs by config and task. Executes the missing runs of the grid.
    Cells whose grid is not complete are left out and named. A grid of one rate needs no run.
    """
    from bitrank.planning.learning_rates import (
        at_factor,
        cell_of,
        choose_rates,
        grid_specs,
        rate_rows,
        with_rates,
    )
    from bitrank.planning.study_plans import longer_cells, trained_longer

    longer = longer_cells(specs, study)
    is_tuned = len(study.rates) > 1
    if len(study.rates) == 1:
        specs = at_factor(specs, study.rates[0])
    measured = specs if is_tuned else [spec for spec in specs if spec.config in longer]
    if not measured:
        return specs, {}
    grid, runs = _executed(grid_specs(measured, study.rates if is_tuned else (1.0,)), study.walks, options)
    chosen = choose_rates(grid, runs, study.walks)
    write_atomically(options.results / "rates.json", json.dumps(rate_rows(chosen), indent=1))
    left_out = {cell_of(spec) for spec in measured} - chosen.keys()
    for config, task in sorted(left_out):
        print(
            f"{config} on {task} is left out: a run of its grid of learning rates failed; repeat the command"
        )
    kept = [spec for spec in specs if cell_of(spec) not in left_out]
    tuned = with_rates(kept, chosen) if is_tuned else kept
    lengthened = [
        trained_longer(spec, longer[spec.config], chosen[cell_of(spec)].seconds_per_step)
        if spec.config in longer
        else spec
        for spec in tuned
    ]
    return lengthened, {cell: choice.seconds for cell, choice in chosen.items()}


def _executed(
    grid: Sequence[RunSpec], walks: bool, options: Options
) -> tuple[list[RunSpec], dict[str, StoredRun]]:
    """Execute the runs of ``grid`` that a choice needs; returns ``grid`` with the digests of hub models, and
    the stored runs by spec id.

    A run that fails is not tried again.
    """
    from bitrank.cli.display import Progress
    from bitrank.execution.matrix import open_jobs, run_study
    from bitrank.planning.learning_rates import missing
    from bitrank.spec.inputs import resolve_hub_digests

    grid = [resolve_hub_digests(spec) for spec in grid]
    options = dataclasses.replace(options, results=options.results / "rates")
    runs: dict[str, StoredRun] = {}
    tried: set[str] = set()
    while due := [spec for spec in missing(grid, runs, walks) if spec.spec_id not in tried]:
        run_study(due, options, Progress)
        tried |= {spec.spec_id for spec in due}
        tracker, _ = open_jobs(grid, options)
        runs = dict(tracker.runs())
    return grid, runs
