"""The spec and the request that the arguments of ``bitrank plan`` describe."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from bitrank.errors import UserError
from bitrank.spec.configs import PLAN_QUANTIZER
from bitrank.spec.make_spec import check, make_spec
from bitrank.spec.parse import parse_setting
from bitrank.spec.profiles import find_profile
from bitrank.spec.run_spec import FILE_OPTIONS, RunSpec
from bitrank.spec.task_kinds import LANGUAGE_MODELLING

if TYPE_CHECKING:  # imports torch
    from bitrank.planning.make_plan import PlanRequest


def measured_spec(arguments: argparse.Namespace) -> RunSpec:
    """The spec of the planned run; sensitivities are measured on its model and task."""
    given = {key: getattr(arguments, key) for key in ("model", "quantizer", *FILE_OPTIONS)}
    options = {"quantizer": PLAN_QUANTIZER}
    options |= dict(parse_setting(text) for text in arguments.set)
    options |= {key: value for key, value in given.items() if value is not None}
    return make_spec(find_profile(arguments.profile), "B-FP", arguments.task, options)


def config_spec(arguments: argparse.Namespace) -> RunSpec:
    """The spec of a run of the model that ``--model``, a ``config.json``, describes."""
    settings = dict(parse_setting(text) for text in arguments.set)
    options: dict[str, Any] = {"batch_size": 1, "max_length": 512, "steps": 1, **settings}
    if arguments.quantizer is not None:
        options["quantizer"] = arguments.quantizer
    return check(RunSpec(config="B-FP", task="", model=arguments.model, kind=LANGUAGE_MODELLING, **options))


def plan_request(arguments: argparse.Namespace, budget: str) -> PlanRequest:
    """The request of the arguments for ``budget``. Raises :class:`UserError` for a malformed pin."""
    from bitrank.planning.make_plan import PlanRequest
    from bitrank.planning.restrictions import choices_for

    return PlanRequest(
        budget,
        arguments.planner,
        choices_for(
            arguments.init, arguments.formats, arguments.ranks or None, arguments.runtime, arguments.max_rank
        ),
        arguments.max_trainable,
        _pins(arguments.pin),
        arguments.evaluations,
        arguments.steps,
        arguments.time_limit,
        tuple(dict.fromkeys(arguments.tie or ())),
        arguments.runtime,
        arguments.learning,
        arguments.random_plan_number,
    )


def print_progress(step: str) -> None:
    """Print progress to standard error: standard output contains only the result, such as JSON."""
    end = "\x1b[K\r" if sys.stderr.isatty() else "\n"
    print(f"measuring {step}" if ":" not in step else step, end=end, file=sys.stderr, flush=True)


def _pins(texts: list[str]) -> dict[str, tuple[str | None, int | None]]:
    pins: dict[str, tuple[str | None, int | None]] = {}
    for text in texts:
        part, equals, choice = text.partition("=")
        fmt, _, rank = choice.partition(":")
        if not equals or not part or (rank and not rank.isdecimal()) or not (fmt or rank):
            raise UserError(
                f"expected a pin like down_proj=int4-g64-dq:16, down_proj=int8 or down_proj=:16, got {text!r}"
            )
        pins[part] = (fmt or None, int(rank) if rank else None)
    return pins
