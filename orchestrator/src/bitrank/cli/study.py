"""``bitrank study``: compare planners at equal bytes."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bitrank_data import write_atomically

from bitrank.cli.arguments import comma_separated, file_path, location, seeds, whole
from bitrank.cli.help import list_names, planners, studies
from bitrank.cli.notes import add_folder, keep_findings
from bitrank.cli.options import WANDB
from bitrank.execution.registry import add_options as add_executor
from bitrank.execution.registry import execution
from bitrank.spec.parse import parse_setting
from bitrank.spec.profiles import find_profile
from bitrank.spec.run_spec import RunSpec

EXAMPLES = """examples:
  bitrank study allocators --quick              one seed, one budget, a third of the steps, small searches
  bitrank study allocators                      three budgets, three seeds, all arms: several hours
  bitrank study frozen-rank --tasks movie_sentences
  bitrank study three-bits --quick
To continue an interrupted study, repeat the command. The report is RESULTS/NAME/report.md."""


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
        "--arms", type=comma_separated, help="comma-separated planners; excludes the configs"
    )
    list_names(arms, planners)
    parser.add_argument("--seeds", type=seeds, help="comma-separated")
    parser.add_argument("--evaluations", type=whole(), help="maximum plans that a search evaluates")
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
    """Plan, execute missing runs, and print the report that ``report`` makes from the store."""
    how = execution(arguments, arguments.jobs)
    import dataclasses

    from bitrank_data import open_task

    from bitrank.cli.display import Progress
    from bitrank.cli.matrix import show
    from bitrank.execution.local import choose_slots
    from bitrank.execution.matrix import Options, run_study
    from bitrank.planning.planner_studies import find_study, planning_costs, profile_of, study_specs

    study = find_study(arguments.name, arguments.quick)
    if arguments.wandb:  # planning may take hours, so missing requirements are reported first
        from bitrank.tracking.wandb_tracker import check

        check()
    given: dict[str, Any] = {
        key: value if isinstance(value, int) else tuple(value)
        for key in ("budgets", "arms", "seeds", "evaluations")
        if (value := getattr(arguments, key))
    }
    if arguments.arms:
        given["configs"] = ()
    study = dataclasses.replace(study, **given)
    base = find_profile(arguments.profile)
    profile = profile_of(arguments.name, base, arguments.quick)
    folder = arguments.results / profile.name
    settings = dict(parse_setting(text) for text in arguments.set)
    tasks = arguments.tasks or list(base.tasks)
    sample = [
        RunSpec("B-FP", task, "", threads=profile.fields_for(open_task(task).kind, task).get("threads"))
        for task in tasks
    ]
    jobs = arguments.jobs or choose_slots(sample)
    specs = study_specs(study, profile, tasks, settings, folder / "plans", jobs)
    options = Options(arguments.store, folder, how)
    done = run_study(specs, options, Progress)
    show(done, options)
    costs = folder / "planning.json"
    write_atomically(costs, json.dumps(planning_costs(specs), indent=1))
    reference = [f"{study.reference}-{budget.lstrip('=')}" for budget in study.budgets]
    print(report(arguments.store, f"bitrank-{profile.name}", reference, costs, folder))
    keep_findings(arguments.store, profile.name, arguments.notes)
    return 0 if all(job.status in {"finished", "done", "stale"} for job in done) else 1
