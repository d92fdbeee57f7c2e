"""``bitrank matrix`` and ``bitrank run``: execute missing runs and show the results."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitrank.cli.arguments import whole
from bitrank.cli.help import list_names, tasks
from bitrank.cli.notes import add_folder, keep_findings
from bitrank.cli.options import (
    JOBS,
    add_command,
    add_field,
    add_locations,
    add_selection,
    add_settings,
    chosen_specs,
    given_settings,
)
from bitrank.cli.settings import OF_RUN
from bitrank.errors import UserError
from bitrank.execution import registry
from bitrank.run.text_scores import check_scores
from bitrank.spec.configs import CONFIGS, DEFAULT_CONFIGS
from bitrank.spec.make_spec import make_spec
from bitrank.spec.profiles import PROFILES, find_profile
from bitrank.spec.run_spec import RunSpec
from bitrank.spec.task_kinds import task_kind

if TYPE_CHECKING:
    from bitrank.execution.attempt import Job
    from bitrank.execution.matrix import Options

RUN = """examples:
  bitrank run --config B-FP --task movie_sentences
  bitrank run --config Joint-3 --task wiki_articles --max-steps 10 --seed 1
  bitrank run --config B-Q4 --task sst2 --model bert-base-uncased --quant-backend cpu-int8
  bitrank run --config B-FP --task reviews.csv --model ./my-bert --set learning_rate=1e-3
  bitrank run --config B-Q4 --task wiki_articles --processes 2
  bitrank run --plan my-plan.json --task wiki_articles"""
MATRIX = """examples:
  bitrank matrix                                   every config on the tasks of profile laptop
  bitrank matrix --configs B-FP,Joint-2 --seeds 0,1,2
  bitrank matrix --profile paper --store http://127.0.0.1:5000
  WANDB_MODE=offline bitrank matrix --wandb        log to Weights & Biases too
  bitrank matrix --profile paper --store http://tracking:5000 --executor ray --ray-address head:6379
  bitrank matrix --profile smoke --force"""

SMOKE_NOTICE = "Profile smoke: tiny random models on toy text; do not interpret these numbers."


def show(jobs: Sequence[Job], options: Options) -> None:
    """Print the table of results, notices, the reasons of failures, and the locations of the files."""
    from bitrank.cli.display import results_table
    from bitrank.execution.matrix import result_rows
    from bitrank.terminal import console

    screen = console()
    screen.print(results_table(result_rows(jobs)))
    for notice, names in _noted(jobs).items():
        runs = names[0] if len(names) == 1 else f"{len(names)} runs"
        screen.print(f"{runs}: note: {notice}", highlight=False, markup=False, soft_wrap=True)
    for job in jobs:
        if job.message and not job.done:
            screen.print(
                f"{job.spec.run_name}: {job.status}: {job.message}",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )
    complete = sum(job.status in {"finished", "done", "stale"} for job in jobs)
    screen.print(f"\n{complete} of {len(jobs)} runs are complete.", highlight=False)
    if jobs and jobs[0].spec.profile == "smoke":
        screen.print(SMOKE_NOTICE, highlight=False)
    for line in _places(jobs, options):
        screen.print(line, highlight=False, markup=False, soft_wrap=True)


def _places(jobs: Sequence[Job], options: Options) -> list[str]:
    """Lines with the folders of runs on this machine, the results, the store and the UI."""
    from bitrank.tracking.store import Store

    store = Store.parse(options.store)
    ui = "make ui" if options.store == "runs" else f"bitrank ui --store {shlex.quote(options.store)}"
    if store.database is None:
        ui = store.shown
    lines = [f"results: {options.results}   store: {store.shown}   UI: {ui}"]
    here = [job.folder for job in jobs if job.folder.is_dir()]  # those of a cluster are on other machines
    if len(here) == 1:
        lines.insert(0, f"run: {_short(here[0])}")
    elif here:
        lines.insert(0, f"runs: {_short(options.work)}/SPEC_ID   (spec ids: bitrank list)")
    return lines


def _short(folder: Path) -> str:
    """``folder`` from the working folder if it is below."""
    here = Path.cwd()
    return str(folder.relative_to(here) if folder.is_relative_to(here) else folder)


def _noted(jobs: Sequence[Job]) -> dict[str, list[str]]:
    """Names of the runs by notice."""
    names: dict[str, list[str]] = {}
    for job in jobs:
        for notice in dict.fromkeys(job.notices):
            names.setdefault(notice, []).append(job.spec.run_name)
    return names


def add_matrix(commands: Any) -> None:
    parser = add_command(commands, "matrix", "execute the missing runs of the study matrix", MATRIX, _matrix)
    add_selection(parser)
    add_locations(parser)
    registry.add_options(parser)
    parser.add_argument("--jobs", type=whole(), help=JOBS)
    add_settings(parser)
    add_folder(parser)


def add_run(commands: Any) -> None:
    parser = add_command(commands, "run", "execute one run", RUN, _run)
    parser.add_argument(
        "--config",
        help="; ".join(f"{name}: {CONFIGS[name].about}" for name in DEFAULT_CONFIGS)
        + "; all: `bitrank list --arms`",
    )
    task = parser.add_argument(
        "--task", required=True, help="the path of your own file or folder, or a task's name"
    )
    list_names(task, tasks)
    parser.add_argument(
        "--profile", default="laptop", help=f"defaults for this kind of task: {', '.join(PROFILES)}"
    )
    add_field(parser, "--plan", "plan", metavar="FILE")
    add_field(parser, "--model", "model")
    add_field(parser, "--epochs", "epochs")
    add_field(parser, "--max-steps", "steps", metavar="STEPS")
    add_field(parser, "--batch-size", "batch_size")
    add_field(parser, "--seed", "seed")
    add_locations(parser)
    registry.add_options(parser)
    add_settings(parser)


def _matrix(arguments: argparse.Namespace) -> int:
    code = _execute(chosen_specs(arguments), arguments, jobs=arguments.jobs)
    keep_findings(arguments.store, find_profile(arguments.profile).name, arguments.notes)  # failures too
    return code


def _run(arguments: argparse.Namespace) -> int:
    if (arguments.config is None) == (arguments.plan is None):
        raise UserError(f"give --config (one of {', '.join(CONFIGS)}) or --plan FILE, and not both")
    given = given_settings(arguments, OF_RUN)
    spec = make_spec(find_profile(arguments.profile), arguments.config or "", arguments.task, given)
    return _execute([spec], arguments, jobs=1)


def _execute(specs: list[RunSpec], arguments: argparse.Namespace, jobs: int | None) -> int:
    from bitrank.cli.display import Progress
    from bitrank.execution.matrix import Options, run_study

    options = Options(
        arguments.store, arguments.results, registry.execution(arguments, jobs), arguments.force
    )
    if options.how.name == registry.LOCAL:  # other machines check for themselves
        _check_here(specs)
    done = run_study(specs, options, Progress)
    show(done, options)
    if any(job.status == "bad input" for job in done):
        return 2
    return 0 if all(job.status in {"finished", "done", "stale"} for job in done) else 1


def _check_here(specs: list[RunSpec]) -> None:
    """Refuse what this machine cannot run, before a run is opened in the store. Checks that import torch are
    made only for specs that need them.
    """
    for kind in {spec.kind for spec in specs}:
        if (generation := task_kind(kind).generation) is not None:
            check_scores(generation.scores)
    if special := [spec for spec in specs if not _runs_anywhere(spec)]:
        from bitrank.process.compute import check_here

        check_here(special)
    if any(spec.plan for spec in specs):
        from bitrank.run.plan_check import check_plans

        check_plans(specs)


def _runs_anywhere(spec: RunSpec) -> bool:
    """Whether every machine has the device and the quant backend of ``spec``."""
    return spec.device in {"auto", "cpu"} and spec.quant_backend in {"auto", "none"}
