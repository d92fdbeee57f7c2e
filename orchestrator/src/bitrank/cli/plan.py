"""``bitrank plan``: a plan for a model and a byte budget, without training."""

from __future__ import annotations

import argparse
from typing import Any

from bitrank.cli.arguments import comma_separated, file_path, location, positive, ranks, whole
from bitrank.cli.help import exact_planners, formats, list_names, planners, quantizers, runtimes, ties
from bitrank.cli.options import add_field, add_task_options
from bitrank.cli.plan_output import Planned, show_plan
from bitrank.cli.plan_request import config_spec, measured_spec, plan_request, print_progress
from bitrank.cli.plan_save import check_plan_file
from bitrank.errors import UserError
from bitrank.export.registry import check_runtime
from bitrank.process.fast_imports import quick_imports
from bitrank.spec.embedded_models import EMBEDDED_MODELS
from bitrank.spec.inits import INITS, PLANNED_INITS
from bitrank.spec.learning import LEARNING

EXAMPLES = """examples:
  bitrank plan --task movie_sentences --budget 12MB
  bitrank plan --task wiki_articles --budget '=B-Q4' --save plan.json
  bitrank plan --task wiki_articles --budgets 3bits,3.5bits,4bits,=B-Q4 --save curve
  bitrank run --plan plan.json --task wiki_articles                      train with the saved plan
  bitrank plan --task wiki_articles --budget 3.25bits --planner rank-only --matrices
  bitrank plan --task wiki_articles --budget 4.5bits --pin embed_tokens=int8 --pin down_proj=int4-g64-dq:16
  bitrank plan --task wiki_articles --budget 4.5bits --for mlx --tie qkv,gate-up --max-rank 16
  bitrank plan --model llama-70b/config.json --budget 40GB               exact sizes, sensitivities by prior
A budget is a number of bytes (20MB, 1.5GiB), stored bits per base parameter with adapters included
(4.25bits), or the bytes of a config (=B-Q4)."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``bitrank plan``."""
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument(
        "--budget",
        help="bytes, bits per parameter, or '=CONFIG' (quoted, for zsh); model and adapters together",
    )
    budget.add_argument(
        "--budgets",
        type=comma_separated,
        help="several budgets, comma-separated: a plan for each, and the curve of predicted loss against "
        "bytes",
    )
    parser.add_argument("--task", help="task to measure sensitivities on; not needed for a config.json")
    parser.add_argument(
        "--model",
        type=location,
        help=f"{', '.join(EMBEDDED_MODELS)}, a hub id, a local folder, or a config.json alone",
    )
    parser.add_argument(
        "--profile", default="laptop", help="defaults for this kind of task (default: laptop)"
    )
    add_task_options(parser)
    _add_choices(parser)
    _add_restrictions(parser)
    _add_run(parser)
    _add_effort(parser)
    _add_output(parser)


def _add_choices(parser: argparse.ArgumentParser) -> None:
    """Add the planner and what it chooses from."""
    planner = parser.add_argument("--planner", default="exact", help="(default: exact) one of")
    list_names(planner, planners)
    choice = parser.add_argument(
        "--formats", type=comma_separated, help="formats to choose from, comma-separated"
    )
    list_names(choice, formats)
    parser.add_argument(
        "--ranks",
        type=ranks,
        help="ranks to choose from, comma-separated; 0: no adapter (default: 4 to 64)",
    )
    parser.add_argument(
        "--pin",
        action="append",
        default=[],
        metavar="PART=FORMAT[:RANK]",
        help="fix matrices with PART in their name",
    )
    parser.add_argument("--max-trainable", type=whole(1, 10**15), help="maximum trainable parameters")


def _add_run(parser: argparse.ArgumentParser) -> None:
    """Add the properties of the planned run that its costs depend on."""
    parser.add_argument(
        "--init",
        default="lq-lora",
        choices=PLANNED_INITS,
        help="initialization of adapters; with lq-lora, rank reduces the quantization error (lq-lora unless "
        f"given): {', '.join(f'{name} ({INITS[name].about})' for name in PLANNED_INITS)}",
    )
    quantizer = parser.add_argument(
        "--quantizer",
        help="how codes and scales are chosen, in the costs and in the run (default: search; rtn for a "
        "config.json without weights)",
    )
    list_names(quantizer, quantizers)
    add_field(parser, "--seed", "seed")
    parser.add_argument(
        "--learning",
        default="none",
        choices=list(LEARNING),
        help="costs of what a limited rank does not learn: "
        + "; ".join(f"{name}: {entry.about}" for name, entry in LEARNING.items())
        + " (default: none)",
    )


def _add_restrictions(parser: argparse.ArgumentParser) -> None:
    """Add the restrictions of the runtime that will execute the model."""
    parser.add_argument(
        "--max-rank", type=whole(0, 2**16), help="largest rank; some runtimes pad all adapters to the largest"
    )
    tie = parser.add_argument(
        "--tie",
        type=comma_separated,
        help="matrices that a runtime fuses share one format, each with its own rank; comma-separated",
    )
    list_names(tie, ties)
    runtime = parser.add_argument(
        "--for",
        dest="runtime",
        default="any",
        metavar="RUNTIME",
        help="only formats that this runtime can store in the planned bytes (default: any); one of",
    )
    list_names(runtime, runtimes)


def _add_effort(parser: argparse.ArgumentParser) -> None:
    """Add the limits of planners that search."""
    parser.add_argument(
        "--evaluations", type=whole(), default=24, help="maximum plans that a search evaluates (default: 24)"
    )
    parser.add_argument(
        "--steps",
        type=whole(),
        default=10,
        help="optimizer steps of one evaluation, in a race of the first round (default: 10)",
    )
    parser.add_argument(
        "--random-plan-number",
        type=whole(0, 2**31),
        default=0,
        metavar="NUMBER",
        help="which random plan the planner random-plan returns (default: 0)",
    )
    limit = parser.add_argument(
        "--time-limit",
        type=positive,
        default=60.0,
        metavar="SECONDS",
        help="time limit of one exact solution; at the limit the best plan so far is returned with its "
        "proven gap (default: 60); of the planners",
    )
    list_names(limit, exact_planners)


def _add_output(parser: argparse.ArgumentParser) -> None:
    """Add the options for the planned run and for the output."""
    parser.add_argument(
        "--save",
        type=file_path,
        help="write the plan as JSON, for run --plan, and a page with its maps beside it; with --budgets "
        "a folder for all plans, curve.json, the figure curve.svg and curve.png, and the page curve.html",
    )
    parser.add_argument(
        "--store",
        type=location,
        default="runs",
        help="store whose finished runs predict the training time (default: runs)",
    )
    parser.add_argument("--matrices", action="store_true", help="list every matrix")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="setting of the planned run",
    )


def act(arguments: argparse.Namespace) -> int:
    """Make a plan, show it, and save it."""
    with quick_imports():
        from bitrank.planning.from_config import is_outline
        from bitrank.planning.make_plan import make_plan  # noqa: F401 - imports every module for planning

    outline = arguments.model is not None and is_outline(arguments.model)
    if arguments.task is None and not outline:
        raise UserError(
            "give --task: sensitivities are measured on it (only a plan from a config.json needs no task)"
        )
    if arguments.task is not None and outline:
        raise UserError(
            f"{arguments.model} has no weights, so nothing can be measured on {arguments.task}: give a "
            "folder with weights, or leave --task out to plan from the shapes alone"
        )
    if arguments.budgets is not None:
        from bitrank.cli.plan_curve import show_curve

        return show_curve(arguments, outline)
    if arguments.save is not None:
        check_plan_file(arguments.save)
    return _plan_from_config(arguments) if outline else _plan_from_measurements(arguments)


def _plan_from_measurements(arguments: argparse.Namespace) -> int:
    from bitrank.cli.plan_view import proven
    from bitrank.forecast.forecast import forecast
    from bitrank.planning.bits_of_budgets import measured_plan
    from bitrank.spec.plan_file import plan_data

    spec, request = measured_spec(arguments), plan_request(arguments, arguments.budget)
    check_runtime(request.runtime, spec)
    result = measured_plan(spec, request, print_progress)
    data = plan_data(
        result.plan, result.sizes.matrices, result.problem.budget, arguments.init, spec.quantizer
    )
    parts = forecast(spec, result.plan.precision, result.plan.ranks, arguments.store)
    data["forecast"] = vars(parts)
    data["planning_seconds"] = {"measuring": result.tables.seconds, "choosing": result.choosing}
    shown = {
        "model and adapters": f"{result.plan.nbytes:,} of {result.problem.budget:,} bytes "
        f"({8 * result.plan.nbytes / result.sizes.parameters:.2f} bits per parameter)",
        "trainable": f"{result.plan.trainable:,} parameters",
        "added loss": f"{result.plan.cost:.4f} nats, of {result.tables.base:.4f} measured in 16 bits",
        **proven(result.plan, arguments.time_limit),
        "peak memory": f"{_mib(parts.peak)}: weights {_mib(parts.stored)}, adapters {_mib(parts.adapters)}, "
        f"gradients {_mib(parts.gradients)}, optimizer {_mib(parts.optimizer)}, "
        f"activations {_mib(parts.activations)}, process {_mib(parts.imports + parts.overhead)}",
        "training time": f"{parts.seconds:.0f} s ({parts.basis})",
        "planning time": f"{result.tables.seconds:.0f} s to measure (once, at most "
        f"{result.tables.peak_mib:,.0f} MiB), {result.choosing:.1f} s to search",
    } | _left_out(result.sizes, data)
    planned = Planned(result.plan, result.problem.items, result.sizes, spec.model)
    return show_plan(arguments, planned, shown, data)


def _plan_from_config(arguments: argparse.Namespace) -> int:
    from bitrank.cli.plan_view import proven
    from bitrank.planning.bits_of_budgets import stated_in_bits
    from bitrank.planning.from_config import plan_from_config, sizes_from_config, training_memory
    from bitrank.spec.plan_file import plan_data

    spec, request = config_spec(arguments), plan_request(arguments, arguments.budget)
    check_runtime(request.runtime, spec, is_outline=True)
    with stated_in_bits(request.budget, lambda: sizes_from_config(spec).parameters):
        plan, problem, sizes = plan_from_config(spec, request)
    parts = training_memory(spec, plan)
    data = plan_data(plan, sizes.matrices, problem.budget, arguments.init, spec.quantizer) | {
        "forecast": vars(parts),
        "sensitivities": "prior",
    }
    shown = {
        "model and adapters": f"{plan.nbytes:,} of {problem.budget:,} bytes "
        f"({8 * plan.nbytes / sizes.parameters:.2f} bits per parameter, {sizes.parameters:,} parameters)",
        "added loss": f"{plan.cost:.3f} nats by prior (nothing was measured: see bitrank.planning.prior)",
        **proven(plan, arguments.time_limit),
        "training memory": f"{_mib(parts.peak)} with {spec.batch_size} × {spec.max_length} tokens, without "
        f"libraries: weights {_mib(parts.weights)}, adapters {_mib(parts.adapters)}, "
        f"gradients {_mib(parts.gradients)}, optimizer {_mib(parts.optimizer)}, "
        f"activations {_mib(parts.activations)}",
    } | _left_out(sizes, data)
    return show_plan(arguments, Planned(plan, problem.items, sizes, spec.model), shown, data)


def _left_out(sizes: Any, data: dict[str, Any]) -> dict[str, str]:
    """The row for tensors that no plan can name; also adds them to ``data``."""
    from dataclasses import asdict

    from bitrank.run.notices import left_out_message, left_out_share

    data["left_in_16_bits"] = {tensor.name: asdict(tensor) for tensor in sizes.outline.left}
    data["left_in_16_bits_share"] = left_out_share(sizes.outline.left, sizes.parameters)
    message = left_out_message(sizes.outline.left, sizes.parameters)
    return {"left out": message} if message else {}


def _mib(nbytes: int) -> str:
    return f"{nbytes / 2**20:,.0f} MiB"
