"""The keyword options of :func:`bitrank.api.plan`, their defaults, and the request that they describe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

from bitrank.errors import unknown
from bitrank.planning.make_plan import Pin, PlanRequest
from bitrank.planning.restrictions import choices_for
from bitrank.spec.inits import PLANNED_INITS
from bitrank.spec.run_spec import RunSpec


class PlanOptions(TypedDict, total=False):
    """Options of :func:`bitrank.api.plan` by keyword; :data:`PLAN_DEFAULTS` has the defaults."""

    planner: str
    init: str
    quantizer: str
    learning: str
    formats: tuple[str, ...] | None
    ranks: tuple[int, ...] | None
    max_rank: int | None
    ties: tuple[str, ...]
    runtime: str
    pins: Mapping[str, Pin] | None
    max_trainable: int | None
    profile: str
    settings: Mapping[str, Any] | None


PLAN_DEFAULTS: PlanOptions = {
    "planner": "exact",
    "init": "default",
    "quantizer": RunSpec.quantizer,
    "learning": "none",
    "formats": None,
    "ranks": None,
    "max_rank": None,
    "ties": (),
    "runtime": "any",
    "pins": None,
    "max_trainable": None,
    "profile": "laptop",
    "settings": None,
}


def request_from_options(budget: str, chosen: PlanOptions) -> PlanRequest:
    """Return the request of ``chosen`` for ``budget``.

    Raises :class:`UserError` for an initialization whose benefit no planner predicts.
    """
    init = chosen["init"]
    if init not in PLANNED_INITS:
        raise unknown("init of a plan", init, PLANNED_INITS)
    runtime = chosen["runtime"]
    return PlanRequest(
        budget,
        chosen["planner"],
        choices_for(init, chosen["formats"], chosen["ranks"], runtime, chosen["max_rank"]),
        chosen["max_trainable"],
        tuple((chosen["pins"] or {}).items()),
        ties=tuple(chosen["ties"]),
        runtime=runtime,
        learning=chosen["learning"],
    )
