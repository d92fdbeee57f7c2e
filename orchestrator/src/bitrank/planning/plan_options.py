"""The keyword options of :func:`bitrank.api.plan`, their defaults, and the request that they describe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

from bitrank.errors import unknown
from bitrank.planning.costs import FORMATS, Choices
from bitrank.planning.make_plan import Pins, PlanRequest
from bitrank.planning.restrictions import formats_for, limit_rank
from bitrank.spec.inits import INITS
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
    pins: Pins | None
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


def request_of(budget: str, chosen: PlanOptions) -> PlanRequest:
    """Return the request of ``chosen`` for ``budget``.

    Raises :class:`UserError` for an initialization whose benefit no planner predicts.
    """
    init = chosen["init"]
    if init not in INITS or init == "loftq":
        raise unknown("init of a plan", init, [name for name in INITS if name != "loftq"])
    formats = formats_for(chosen["runtime"], chosen["formats"], FORMATS)
    choices = Choices(formats, chosen["ranks"], repairs=init == "lq-lora")
    return PlanRequest(
        budget,
        chosen["planner"],
        limit_rank(choices, chosen["max_rank"]),
        chosen["max_trainable"],
        chosen["pins"],
        ties=tuple(chosen["ties"]),
        runtime=chosen["runtime"],
        learning=chosen["learning"],
    )
