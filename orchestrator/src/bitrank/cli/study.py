"""``bitrank study``: compare planners, or published systems, at equal bytes."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitrank.cli.arguments import comma_separated, factors, seeds, whole
from bitrank.cli.help import list_names, studies, study_arms
from bitrank.cli.matrix import SMOKE_NOTICE, show
from bitrank.cli.notes import add_folder, is_served, keep_findings, served_advice
from bitrank.cli.options import JOBS, WANDB, add_places
from bitrank.cli.settings import OF_STUDY, parsed_settings
from bitrank.errors import FAILED
from bitrank.execution.registry import add_options as add_executor
from bitrank.execution.registry import execution
from bitrank.spec.make_spec import make_spec
from bitrank.spec.profiles import Profile, find_profile

if TYPE_CHECKING:
    from bitrank.planning.planner_studies import PlannerStudy

EXAMPLES = """examples:
  bitrank study allocators --quick              one seed, one budget, a third of the steps, small searches
  bitrank study allocators --forecast           the hours that the whole study takes here
  bitrank study allocators                      three budgets, three seeds, all arms, the best of five rates
  bitrank study systems --quick                 published systems at the bytes of B-Q4, one seed
  bitrank study systems --arms Plan-Q4,B-Q4,QA-LoRA-Q4 --budgets 3.5bits
  bitrank study frozen-rank --tasks movie_sentences
  bitrank study three-bits --quick
To continue an interrupted study, repeat the command. The report is RESULTS/NAME/report.md,
with --quick RESULTS/NAME-quick/report.md, with --profile RESULTS/NAME-PROFILE/report.md."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``bitrank study``."""
    list_names(parser.add_argument("name", help="name of the study"), studies)
    parser.add_argument(
        "--quick", action="store_true", help="one seed, one budget, a third of the steps, small searches"
    )
    parser.add_argument(
        "--profile",
        default="laptop",
        help="profile of tasks, models and settings (default: laptop); the experiment and the results of "
        "another one are called NAME-PROFILE",
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
    add_places(parser, "plans, tables and the report")
    add_executor(parser)
    parser.add_argument("--jobs", type=whole(), help=JOBS)
    parser.add_argument("--wandb", action="store_true", help=WANDB)
    add_folder(parser)
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="setting of every run"
    )


def act(arguments: argparse.Namespace, report: Callable[..., str]) -> int:
    """Forecast, plan, choose learning rates, execute missing runs, and print the report of ``report``."""
    how = execution(arguments, arguments.jobs)
    settings = parsed_settings(arguments.set, OF_STUDY)
    from bitrank.cli.display import Progress
    from bitrank.cli.study_checks import check_has_runs, check_study
    from bitrank.cli.study_rates import tuned_specs
    from bitrank.execution.local import choose_slots
    from bitrank.execution.matrix import Options, run_study
    from bitrank.planning.planner_studies import profile_of
    from bitrank.planning.study_plans import planning_costs, study_specs
    from bitrank.planning.study_records import config_name, record_planning, without_rate

    study = _study(arguments)
    if arguments.wandb:  # planning may take hours, so missing requirements are reported first
        from bitrank.tracking.wandb_tracker import check

        check()
    base = find_profile(arguments.profile)
    profile = profile_of(arguments.name, base, arguments.quick)
    folder = arguments.results / profile.name
    tasks = arguments.tasks or list(base.tasks)
    samples = [make_spec(profile, "B-FP", task, settings) for task in tasks]
    check_study(study, samples)
    jobs = arguments.jobs or choose_slots(samples)
    _print_forecast(study, profile, tasks, settings, arguments.store, jobs)
    if arguments.forecast:
        return 0
    planned = study_specs(study, profile, tasks, settings, folder / "plans", jobs)
    check_has_runs(planned)
    options = Options(arguments.store, folder, how)
    tuned, rate_seconds, untuned = tuned_specs(planned.specs, study, options)
    if not tuned:  # the reasons are printed
        return FAILED
    done = run_study(tuned, options, Progress)
    show(done, options)
    references = [config_name(study.reference, budget) for budget in study.budgets]
    costs = planning_costs(tuned, rate_seconds)
    left_out = [*planned.left_out, *without_rate(untuned, study)]
    record_planning(folder / "planning.json", references, costs, left_out)
    _print_report(arguments, profile.name, folder, report)
    is_whole = len(tuned) == len(planned.specs) and all(
        job.status in {"finished", "done", "stale"} for job in done
    )
    return 0 if is_whole else FAILED


def _print_report(arguments: argparse.Namespace, name: str, folder: Path, report: Callable[..., str]) -> None:
    """Print the report of ``report`` and keep its findings, if the store can be read and its runs count."""
    if is_served(arguments.store):
        print(f"report: not written: {served_advice(f'bitrank-{name}', folder / 'planning.json')}")
        return
    print(report(arguments.store, f"bitrank-{name}", [folder / "planning.json"], folder))
    if arguments.profile == "smoke":
        print(SMOKE_NOTICE)
    else:
        keep_findings(arguments.store, name, arguments.notes, folder / "planning.json")


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
