"""Plan files: formats and ranks by module, and the planner's predictions."""

from __future__ import annotations

import json
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from bitrank_data import write_atomically

from bitrank.errors import UserError, shortened
from bitrank.spec.fields import About, Count, OneOf, PlannedRank, Rank, Text, one_of
from bitrank.spec.inits import INITS
from bitrank.spec.named_rank_rules import RANK_RULES, named_rank_rule

if TYPE_CHECKING:  # plans are read without loading torch
    from bitrank_planner import Plan
    from bitrank_quant import WeightMatrix

_EXPECTED = 'expected JSON like {"precision": {"module": "nf4"}, "ranks": {"module": 8}}'
_OBJECTS = ("precision", "ranks", "shapes", "adaptive", "rank_rule", "rank_rule_of")
_LARGEST = 64 * 2**20  # bytes; a plan for a thousand blocks takes less than 2 MB


def _quantizers() -> list[str]:
    from bitrank_quant import QUANTIZERS

    return list(QUANTIZERS)


def plan_data(
    plan: Plan, matrices: Mapping[str, WeightMatrix], budget: int, init: str, quantizer: str = "rtn"
) -> dict[str, Any]:
    """Convert ``plan`` to the data of a plan file.

    A run compares ``shapes`` with its model and rejects a plan for another one. ``init`` is the adapters'
    initialization, ``quantizer`` the one that the predicted loss assumes. ``proven_lower_bound`` is the least
    predicted added loss of all plans with the same options, and ``proven_gap`` the largest relative
    improvement over this plan; both are None if the planner proves no bound.
    """
    return {
        "planner": plan.solver,
        "budget": budget,
        "bytes": plan.nbytes,
        "predicted_added_loss": plan.cost,
        "proven_lower_bound": plan.bound,
        "proven_gap": plan.gap,
        "trainable": plan.trainable,
        "init": init,
        "quantizer": quantizer,
        "precision": plan.precision,
        "ranks": plan.ranks,
        "shapes": {name: list(matrices[name].shape) for name in plan.precision},
    }


def plan_stem(path: Path) -> str:
    """The name of a plan file without ``.json``; no other ending is removed: ``plan-3.5bits`` has none."""
    return path.stem if path.suffix.lower() == ".json" else path.name


def save_plan(data: dict[str, Any], path: Path) -> None:
    """Write ``data`` to ``path`` atomically. Raises :class:`UserError` if the file cannot be written, or if
    ``data`` is no JSON."""
    try:
        text = json.dumps(data, indent=1)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"cannot write the plan as JSON: {error}; expected texts, numbers, lists and objects, so convert "
            "other values or remove them"
        ) from error
    try:
        write_atomically(path, text + "\n")
    except OSError as error:
        raise UserError(
            f"cannot write the plan to {path}: {error.strerror}; give another path with --save"
        ) from error


@dataclass(frozen=True)
class Adaptive:
    """Keys of ``adaptive`` in a plan file."""

    init_r: Annotated[Rank, About("AdaLoRA's first rank")]
    target_r: Annotated[Rank, About("AdaLoRA's last mean rank")]
    shrink: Annotated[bool, About("remove pruned ranks when AdaLoRA stops moving them")] = False


@dataclass(frozen=True)
class RankRuleOf:
    """The key of ``rank_rule_of`` that every plan file has; the others are fields of the config's rule."""

    config: Annotated[Text, About("config with the rank rule and the defaults of the run's fields")]


@dataclass(frozen=True)
class PlanFile:
    """Keys of a plan file. A file written by hand needs only ``precision`` and ``ranks``."""

    precision: Annotated[dict[Text, Text], About("format by module; other matrices stay in 16 bits")]
    ranks: Annotated[
        dict[Text, PlannedRank], About("rank by module; other matrices, and those of rank 0, get no adapter")
    ]
    shapes: Annotated[
        dict[Text, list[Count]], About("(out, in) by module; a run rejects a model with other shapes")
    ] = field(default_factory=dict)
    init: Annotated[Text, one_of(INITS), About("default of the run's field `init`")] = "default"
    quantizer: Annotated[
        Text, OneOf(_quantizers, always=("rtn", "search")), About("default of the run's field `quantizer`")
    ] = "rtn"
    adaptive: Annotated[
        dict[str, Any],
        About("`init_r`, `target_r` and `shrink`: AdaLoRA distributes rank, and `ranks` is not used"),
    ] = field(default_factory=dict)
    rank_rule: Annotated[
        dict[str, Any],
        About(
            f"`name` ({', '.join(RANK_RULES)}) and parameters of the rule, such as `rank`: replaces `ranks`"
        ),
    ] = field(default_factory=dict)
    rank_rule_of: Annotated[
        dict[str, Any],
        About("`config` and changed fields of its rank rule: replaces `ranks`, with the config's defaults"),
    ] = field(default_factory=dict)
    planner: Annotated[Text | None, About("the planner that made the plan")] = None
    budget: Annotated[int | None, About("byte budget of the planner", "bytes")] = None
    bytes: Annotated[int | None, About("stored size that the planner computed", "bytes")] = None
    predicted_added_loss: Annotated[float | None, About("predicted increase of the loss", "nats")] = None
    proven_lower_bound: Annotated[float | None, About("no plan has a lower predicted added loss", "nats")] = (
        None
    )
    proven_gap: Annotated[
        float | None, About("largest relative improvement that a better plan could bring")
    ] = None
    trainable: Annotated[int | None, About("trainable numbers")] = None
    forecast: Annotated[dict[str, Any], About("predicted memory by component")] = field(default_factory=dict)
    planning_seconds: Annotated[dict[str, Any], About("time of measuring and of searching", "seconds")] = (
        field(default_factory=dict)
    )
    planning_peak_mib: Annotated[float | None, About("peak memory of measuring and choosing", "MiB")] = None
    sensitivities: Annotated[str | None, About("`prior` for a plan from a `config.json` alone")] = None
    left_in_16_bits: Annotated[dict[str, Any], About("tensors that no plan can name, with the reason")] = (
        field(default_factory=dict)
    )
    left_in_16_bits_share: Annotated[float | None, About("their share of the parameters, 0 to 1")] = None
    made_for: Annotated[str | None, About("hash of a study's planning inputs, to reuse its plan")] = None
    matrices: Annotated[list[Any], About("in a run's artifact: every matrix of its model")] = field(
        default_factory=list
    )
    applied: Annotated[dict[str, Any], About("in a run's artifact: format and backend by matrix")] = field(
        default_factory=dict
    )


def read_plan(path: Path) -> dict[str, Any]:
    """Read the plan file at ``path``; optional objects default to empty ones.

    :data:`_OBJECTS` must be objects; :func:`valid_plan` checks the other keys. Raises :class:`UserError` when
    the file cannot be read or is not a plan.
    """
    return check_plan_data(_json_of(path), str(path))


def check_plan_data(data: Any, source: str) -> dict[str, Any]:
    """Return ``data`` with the optional keys. Raises :class:`UserError` with ``source`` if it is no plan."""
    if not isinstance(data, dict):
        raise _not_a_plan(source, f"{type(data).__name__}: {shortened(data)}")
    if missing := [key for key in ("precision", "ranks") if key not in data]:
        raise _not_a_plan(source, f"no {missing[0]!r}")
    mappings = {key: data.get(key, {}) for key in _OBJECTS}
    for key, value in mappings.items():
        if not isinstance(value, dict):
            raise _not_a_plan(source, f"{key} = {shortened(value)}")
    formats_are_text = all(isinstance(fmt, str) for fmt in mappings["precision"].values())
    ranks_are_whole = all(type(rank) is int for rank in mappings["ranks"].values())
    if not (formats_are_text and ranks_are_whole):
        raise _not_a_plan(source, "another type; formats must be text and ranks whole numbers")
    return {**data, **mappings}


def valid_plan(path: Path) -> dict[str, Any]:
    """Read the plan file at ``path`` and check every key and type; formats are checked against a model later.

    Raises :class:`UserError`.
    """
    # Imported here: a run's own process also reads plans, and pydantic would increase its measured memory.
    from bitrank.spec.validation import validate

    data = read_plan(path)
    try:
        validate(PlanFile, data)
        if data["adaptive"]:
            validate(Adaptive, data["adaptive"], "key of adaptive")
        if data["rank_rule"]:
            named_rank_rule(data["rank_rule"])
        if data["rank_rule_of"]:
            validate(RankRuleOf, {"config": data["rank_rule_of"].get("config")}, "key of rank_rule_of")
    except UserError as error:
        raise UserError(f"{path} is not a plan: {error}") from error
    return data


def _json_of(path: Path) -> Any:
    try:
        # Opening a pipe would block until another process writes to it, and a device may never end.
        if not stat.S_ISREG(path.stat().st_mode):
            raise UserError(f"cannot read the plan {path}: it is not a regular file; {_EXPECTED}")
        with path.open("rb") as file:
            content = file.read(_LARGEST + 1)
    except OSError as error:
        raise UserError(f"cannot read the plan {shortened(str(path))}: {error.strerror}") from error
    if len(content) > _LARGEST:
        raise _not_a_plan(str(path), f"more than {_LARGEST // 2**20} MiB")
    try:
        return json.loads(content.decode("utf-8-sig"), object_pairs_hook=_unique)
    except RecursionError as error:
        raise _not_a_plan(str(path), "objects nested too deeply") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise _not_a_plan(str(path), f"no JSON: {error}") from error
    except ValueError as error:
        raise _not_a_plan(str(path), str(error)) from error


def _not_a_plan(source: str, got: str) -> UserError:
    return UserError(f"{source} is not a plan: {_EXPECTED}; got {got}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build the object of ``pairs``. JSON readers silently keep the last of two values for one key.

    ``bitrank_data`` has its own copy for rows of data, with another message.
    """
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"two values for {shortened(key)}; remove one")
        found[key] = value
    return found
