"""The spec and the request that the arguments of ``bitrank plan`` describe."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bitrank.cli.options import TASK_OPTIONS
from bitrank.cli.settings import OF_OUTLINE, OF_PLAN, parsed_settings, with_options
from bitrank.errors import UserError, shortened
from bitrank.spec.configs import PLAN_QUANTIZER
from bitrank.spec.make_spec import check, make_spec, refuse
from bitrank.spec.profiles import find_profile
from bitrank.spec.run_spec import RunSpec
from bitrank.spec.task_kinds import LANGUAGE_MODELLING

if TYPE_CHECKING:  # imports torch
    from bitrank.planning.make_plan import Pin, PlanRequest


def measured_spec(arguments: argparse.Namespace) -> RunSpec:
    """The spec of the planned run; sensitivities are measured on its model and task."""
    given = _given(arguments, OF_PLAN, "model", *TASK_OPTIONS)
    options = {"quantizer": PLAN_QUANTIZER, **given}
    return make_spec(find_profile(arguments.profile), "B-FP", arguments.task, options)


def config_spec(arguments: argparse.Namespace) -> RunSpec:
    """The spec of a run of the model that ``--model``, a ``config.json``, describes."""
    find_profile(arguments.profile)  # for the printed run: nothing here depends on it
    refuse([key for key in TASK_OPTIONS if getattr(arguments, key) is not None], OF_OUTLINE)
    given = _given(arguments, OF_OUTLINE)
    length = {} if "epochs" in given else {"steps": 1}
    options: dict[str, Any] = {"batch_size": 1, "max_length": 512, **length, **given}
    return check(RunSpec(config="B-FP", task="", model=arguments.model, kind=LANGUAGE_MODELLING, **options))


def _given(arguments: argparse.Namespace, refused: Mapping[str, str], *options: str) -> dict[str, Any]:
    """The fields that ``--set``, ``options``, ``--quantizer`` and ``--seed`` give."""
    given = {key: getattr(arguments, key) for key in ("quantizer", "seed", *options)}
    return with_options(parsed_settings(arguments.set, refused), given)


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


def _pins(texts: list[str]) -> list[tuple[str, Pin]]:
    """The pins in the order of ``texts``, in which later ones replace earlier ones of the same matrices."""
    pins = [_pin(text) for text in texts]
    given: dict[str, Pin] = {}
    for part, (fmt, rank) in pins:
        before, known = given.get(part, (None, None))
        for old, new in ((before, fmt), (known, rank)):
            if None not in (old, new) and old != new:
                raise UserError(f"the pins of {part!r} disagree: {old} and {new}; give one of them")
        given[part] = (before if fmt is None else fmt, known if rank is None else rank)
    return pins


def _pin(text: str) -> tuple[str, Pin]:
    part, equals, choice = text.partition("=")
    fmt, _, rank = choice.partition(":")
    is_rank = re.fullmatch(r"\d{0,5}", rank, re.ASCII) is not None
    if not equals or not part or not is_rank or not (fmt or rank):
        raise UserError(
            "expected a pin like down_proj=int4-g64-dq:16, down_proj=int8 or down_proj=:16, got "
            f"{shortened(text)}"
        )
    return part, (fmt or None, int(rank) if rank else None)
