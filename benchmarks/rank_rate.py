"""Does one learning rate serve all ranks? Best rate of uniform rank 2, 8 and 64 under each scale policy.

    python benchmarks/rank_rate.py [--tasks movie_sentences] [--seeds 0,1] [--jobs 2] [--forecast]
    python benchmarks/rank_rate.py --report           # table and figure of the runs that the store has

Every run is LoRA with one rank on a 16-bit base (B-FP), validated after its last step, at the rates of a √10
grid. A policy is neutral on a task if the best rates of the ranks differ by one step of the grid or less.
Runs go through the store, so an interrupted command continues when it is repeated; the tasks run one after
the other, in the order of ``--tasks``. Policies that give a rank the same scale share its runs. The hours are
predicted first.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bitrank.cli.display import Progress
from bitrank.execution.local import choose_slots
from bitrank.execution.matrix import Options, run_study
from bitrank.execution.options import Execution
from bitrank.forecast.forecast import forecast
from bitrank.models.locate import locate
from bitrank.models.meta_model import meta_model
from bitrank.process.compute import Compute
from bitrank.run.data import tokenised
from bitrank.spec.configs import find_config
from bitrank.spec.make_spec import make_spec
from bitrank.spec.profiles import Profile, find_profile
from bitrank.spec.run_spec import RunSpec
from bitrank.tracking.run_state import read_runs, state_of
from bitrank.tracking.sqlite_store import has_store
from bitrank.tracking.store import Store
from bitrank_adapters import SCALE_POLICIES, AdapterScale
from bitrank_analysis import open_store
from bitrank_data import CLASSIFICATION, LANGUAGE_MODELLING
from bitrank_quant import block_matrices, weight_matrices
from rank_rate_report import Cell, write_report

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "results" / "rank-rates"
RANKS = (2, 8, 64)
RATES = tuple(round(10 ** (exponent / 2), 9) for exponent in range(-8, -3))  # 1e-4, 3.2e-4, …, 1e-2
STEPS = {CLASSIFICATION: 120, LANGUAGE_MODELLING: 30}
NAME = "rank-rates"  # of the experiment in the store


def main() -> int:
    arguments = _options()
    profile = replace(find_profile(arguments.profile), name=NAME)
    tasks = arguments.tasks or list(find_profile(arguments.profile).tasks)
    cells = cells_of(tasks, arguments.ranks, arguments.rates, arguments.seeds)
    specs = {cell: spec_of(profile, cell, arguments.steps) for cell in cells}
    if not arguments.report:
        slots = arguments.jobs or min(choose_slots(list(specs.values())), len(specs))
        print_forecast(list(specs.values()), arguments.store, slots)
        if arguments.forecast:
            return 0
        run_tasks(specs, tasks, Options(arguments.store, Path("results") / NAME, Execution(jobs=slots)))
    losses = losses_of(specs, arguments.store)
    write_report(losses, arguments.results, {cell: spec.steps for cell, spec in specs.items()})
    missing = len(specs) - len(losses)
    print(f"{arguments.results}: {len(losses)} of {len(specs)} runs")
    return 1 if missing else 0


def cells_of(
    tasks: Sequence[str], ranks: Sequence[int], rates: Sequence[float], seeds: Sequence[int]
) -> list[Cell]:
    """Every run as a cell; of the policies that scale a rank alike only the first."""
    cells = []
    for task in tasks:
        for seed in seeds:
            for rank in ranks:
                cells += [
                    Cell(task, policy, rank, rate, seed)
                    for policy in dict.fromkeys(first_policy(name, rank) for name in SCALE_POLICIES)
                    for rate in rates
                ]
    return cells


def first_policy(name: str, rank: int) -> str:
    """The first policy of the registry that gives ``rank`` the same scale as the policy ``name``."""
    scale = AdapterScale(policy=name).of(rank)
    return next(policy for policy in SCALE_POLICIES if AdapterScale(policy=policy).of(rank) == scale)


def spec_of(profile: Profile, cell: Cell, steps: int | None) -> RunSpec:
    """The run of ``cell``: B-FP at its rank, validated once, at the end, and not tested."""
    kind = make_spec(profile, "B-FP", cell.task).kind
    count = steps or STEPS[kind]
    return make_spec(
        profile,
        "B-FP",
        cell.task,
        {
            "rank": cell.rank,
            "learning_rate": cell.rate,
            "scale_policy": cell.policy,
            "seed": cell.seed,
            "steps": count,
            "eval_every": count,
            "tested": False,
        },
    )


def print_forecast(specs: Sequence[RunSpec], store: str, slots: int) -> None:
    """Print the predicted hours of the runs that the store lacks. Each task and rank is predicted once."""
    database = Store.parse(store).database
    known = read_runs(database, f"bitrank-{NAME}") if database is not None and has_store(database) else {}
    seconds: dict[tuple[str, int | None], float] = {}
    total: dict[str, list[float]] = {}
    for spec in specs:
        if state_of(spec, known).name in {"done", "diverged"}:
            continue
        key = (spec.task, spec.rank)
        if key not in seconds:
            seconds[key] = _seconds(spec, store)
        total.setdefault(spec.task_name, []).append(seconds[key])
    for task, each in total.items():
        print(
            f"{task}: {len(each)} runs to do, about {sum(each) / slots / 3600:.1f} h with {slots} at a time"
        )
    if not total:
        print("no run to do")


def _seconds(spec: RunSpec, store: str) -> float:
    """Predicted duration of ``spec``."""
    place, classes = locate(spec.model), len(tokenised(spec).classes)
    model = meta_model(place, spec.kind, classes, Compute.of(spec).dtype)
    config = find_config(spec.config, None, spec.tuned)
    quantizable = [matrix for matrix in weight_matrices(model) if matrix.tied_to is None]
    formats = config.precision.assign_formats(quantizable)
    return forecast(spec, formats, config.rank.assign_ranks(block_matrices(model)), store).seconds


def run_tasks(specs: dict[Cell, RunSpec], tasks: Sequence[str], options: Options) -> None:
    """Run what the store lacks, one task after the other."""
    for task in tasks:
        run_study([spec for cell, spec in specs.items() if cell.task == task], options, Progress)


def losses_of(specs: dict[Cell, RunSpec], store: str) -> dict[Cell, float]:
    """Validation loss in nats of every cell that has a run; infinite where training diverged."""
    database = Store.parse(store).database
    runs = read_runs(database, f"bitrank-{NAME}") if database is not None and has_store(database) else {}
    if not runs:
        return {}
    rows = open_store(store).sql("SELECT run_id, value FROM final_metrics WHERE key = 'val/loss'").fetchall()
    by_run = {str(run_id): float(value) for run_id, value in rows}
    losses = {}
    for cell, spec in specs.items():
        state = state_of(spec, runs)
        if state.name == "diverged":
            losses[cell] = math.inf
        elif state.name in {"done", "stale"} and state.run_id in by_run:
            losses[cell] = by_run[state.run_id]
    return losses


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--profile", default="laptop")
    parser.add_argument("--tasks", type=_texts, help="comma-separated, in the order to run them")
    parser.add_argument("--ranks", type=_whole, default=list(RANKS), help="comma-separated")
    parser.add_argument("--rates", type=_numbers, default=list(RATES), help="comma-separated, ascending")
    parser.add_argument("--seeds", type=_whole, default=[0, 1], help="comma-separated")
    parser.add_argument("--steps", type=int, help="optimizer steps (default: 120, language modelling 30)")
    parser.add_argument("--jobs", type=int, help="runs at the same time (default: what bitrank chooses)")
    parser.add_argument("--store", default="runs", help="folder or MLflow URI of the runs (default: runs)")
    parser.add_argument("--results", type=Path, default=FOLDER, help="folder of table and figure")
    parser.add_argument("--forecast", action="store_true", help="print the predicted hours alone")
    parser.add_argument("--report", action="store_true", help="write table and figure of finished runs alone")
    return parser.parse_args()


def _texts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _whole(text: str) -> list[int]:
    return [int(part) for part in _texts(text)]


def _numbers(text: str) -> list[float]:
    return sorted(float(part) for part in _texts(text))


if __name__ == "__main__":
    raise SystemExit(main())
