"""The arms of the study. A new arm is one entry here, and a dataclass in ``rules.py`` if no rule fits.

A :class:`Config` fixes formats and ranks by rules. A :class:`PlannedArm` names a request for a plan: a
planner chooses formats and ranks for each model and task, before the run
(:mod:`bitrank.planning.planned_arms`). The arms of published systems are in :mod:`bitrank.spec.systems`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from bitrank.errors import UserError, shortened, unknown
from bitrank.spec import rules
from bitrank.spec.config import Config
from bitrank.spec.named_rank_rules import named_rank_rule
from bitrank.spec.plan_file import read_plan
from bitrank.spec.pruned_rules import AdaptiveRank
from bitrank.spec.rule_interface import RankRule
from bitrank.spec.systems import ENCODER_DECODER, SYSTEM, SYSTEMS

PLAN_QUANTIZER = "search"  # default of plans that are measured, for the reason in decision 43


@dataclass(frozen=True)
class PlannedArm:
    """An arm whose formats and ranks ``planner`` chooses within ``budget``, once for each model and task.

    The fields are those of ``bitrank plan``: ``budget`` is a text such as ``=B-Q4`` or ``3.5bits``,
    ``formats`` and ``ranks`` are offered (None: the defaults), ``pins`` map a part of a module's name to
    (format, rank), a search may evaluate ``evaluations`` plans of ``steps`` optimizer steps, and an exact
    solver may run for ``seconds``. ``learning`` (:data:`~bitrank.spec.learning.LEARNING`) adds what rank
    learns to the costs. ``init`` and ``quantizer`` are the defaults of the run's fields of these
    names, and the plan is made for the run's values. The seed of a run is not part of the request: runs that
    differ in their seed share a plan.
    """

    planner: str
    budget: str
    about: str = ""
    init: str = "lq-lora"
    quantizer: str = PLAN_QUANTIZER
    formats: tuple[str, ...] | None = None
    ranks: tuple[int, ...] | None = None
    max_trainable: int | None = None
    pins: Mapping[str, tuple[str | None, int | None]] = field(default_factory=dict)
    evaluations: int = 24
    steps: int = 10
    seconds: float = 60.0
    learning: str = "none"
    family: str = "planned"
    source: str = ""

    @property
    def budget_config(self) -> Config | None:
        """The config whose bytes are the budget; None for a budget in bytes or bits. Raises
        :class:`UserError` if it does not exist or is itself planned.
        """
        return find_config(self.budget[1:]) if self.budget.startswith("=") else None

    def as_data(self) -> dict[str, Any]:
        """The request as plain data, with the rules of the config whose bytes are the budget.

        The spec contains it, so the id of a run is known before its plan is made.
        """
        request = {key: value for key, value in vars(self).items() if key not in _UNREQUESTED}
        request["pins"] = {part: list(choice) for part, choice in self.pins.items()}
        for key in ("formats", "ranks"):
            request[key] = None if request[key] is None else list(request[key])
        source = self.budget_config
        return {"request": request, **({"budget_config": source.as_data()} if source else {})}


Arm = Config | PlannedArm

_UNREQUESTED = ("about", "family", "source")  # fields of a planned arm that change no plan
CONFIGS: dict[str, Arm] = {
    "B-FP": Config(
        rules.Sixteen(), rules.FixedRank(8), "baseline", "LoRA in 16 bits", "LoRA; Hu et al. 2022"
    ),
    "B-Q4": Config(
        rules.BlocksIn("nf4-dq"),
        rules.FixedRank(8),
        "baseline",
        "QLoRA: NF4 blocks, rank 8",
        "QLoRA; Dettmers et al. 2023",
    ),
    "B-Ada": Config(
        rules.Sixteen(),
        AdaptiveRank(12, 4),
        "baseline",
        "AdaLoRA in 16 bits",
        "AdaLoRA; Zhang et al. 2023",
    ),
    "Joint-1": Config(rules.BlocksIn("nf4-dq"), AdaptiveRank(12, 4), "joint", "NF4 blocks with AdaLoRA"),
    "Joint-2": Config(
        rules.EdgesHigh("int8", "nf4-dq"),
        AdaptiveRank(12, 4),
        "joint",
        "int8 at the edges, NF4 between, AdaLoRA",
    ),
    "Joint-3": Config(
        rules.ByRole({"attention": "int8", "ffn": "nf4-dq"}),
        rules.RankByRole({"attention": 6, "ffn": 10}),
        "joint",
        "attention int8 at rank 6, FFN NF4 at rank 10",
    ),
    # Ranks from that of B-Q4 on: costs include the error that rank repairs, not what it learns. Smaller ranks
    # leave training too little capacity.
    # SmolLM2 after 30 steps, validation perplexity by smallest rank: 23.99 (2), 23.88 (4), 23.80 (8).
    "Plan-Q4": PlannedArm(
        "exact",
        "=B-Q4",
        "joint exact plan of bits and ranks in the bytes of B-Q4",
        ranks=(8, 12, 16, 24, 32, 48, 64),
    ),
    **SYSTEMS,
}
_LARGEST = 2**16  # that of a rank
_SPECIAL = (ENCODER_DECODER, SYSTEM)
# Arms of the study that every model supports, and of the matrix unless others are given.
DEFAULT_CONFIGS = tuple(name for name, arm in CONFIGS.items() if arm.family not in _SPECIAL)


def find_arm(name: str, plan: str | None = None, tuned: Mapping[str, int] | None = None) -> Arm:
    """Return the arm ``name``, or the arm of the plan file at ``plan``, with the changes in ``tuned``.

    ``tuned`` replaces fields of the arm's rank rule, such as ``{"rank": 16}``. Raises :class:`UserError`.
    """
    if plan is None and name not in CONFIGS:
        raise unknown("config", name, CONFIGS)
    config = CONFIGS[name] if plan is None else config_of_plan(read_plan(Path(plan)), plan)
    if isinstance(config, PlannedArm):
        if tuned:
            raise UserError(
                f"the planner chooses the ranks of {name}: {', '.join(tuned)} cannot be set for it"
            )
        return config
    tunable = [f.name for f in fields(config.rank)]  # type: ignore[arg-type]
    if tuned and isinstance(config.rank, rules.GivenRanks):
        raise UserError(
            f"the plan {plan} states the rank of every matrix: {', '.join(tuned)} cannot be set for it"
        )
    for key in tuned or {}:
        if key not in tunable:
            raise UserError(
                f"the rank rule of {plan or name} has no {key!r} to set; it has {', '.join(tunable)}"
            )
    return replace(config, rank=replace(config.rank, **tuned)) if tuned else config  # type: ignore[type-var]


def find_config(name: str, plan: str | None = None, tuned: Mapping[str, int] | None = None) -> Config:
    """Return :func:`find_arm`'s arm. Raises :class:`UserError` also for an arm without formats and ranks of
    its own, because a planner chooses them for each model.
    """
    arm = find_arm(name, plan, tuned)
    if isinstance(arm, PlannedArm):
        rules_of = ", ".join(key for key, entry in CONFIGS.items() if isinstance(entry, Config))
        raise UserError(
            f"the formats and ranks of {name} are planned for each model, so they are not known here; "
            f"expected one of {rules_of}"
        )
    return arm


def config_of_plan(plan: Mapping[str, Any], source: str) -> Config:
    """Return the arm that a plan's data describes; errors name ``source``.

    With ``adaptive``, such as ``{"init_r": 12, "target_r": 8}``, AdaLoRA distributes rank; with
    ``rank_rule``, such as ``{"name": "ffn-only", "rank": 8}``, a rule does
    (:data:`~bitrank.spec.named_rank_rules.RANK_RULES`); with ``rank_rule_of``, such as
    ``{"config": "DoRA-Weight-Q4", "rank": 7}``, the rule of a config with these fields does, and the run's
    fields have the config's defaults. ``ranks`` is then not used.
    """
    bits = rules.GivenBits(plan["precision"], plan["shapes"])
    config = _config_named_in(plan, source)
    settings = config.settings if config else {}
    return Config(bits, config.rank if config else _rank_rule_of(plan, source), "joint", settings=settings)


def _config_named_in(plan: Mapping[str, Any], source: str) -> Config | None:
    """The config of ``rank_rule_of`` with its changed fields; None if the plan has no such key."""
    given = plan["rank_rule_of"]
    if not given:
        return None
    if plan["adaptive"] or plan["rank_rule"]:
        raise UserError(f"{source} is not a plan: it has rank_rule_of and another rule of ranks; remove one")
    changed = {key: value for key, value in given.items() if key != "config"}
    name = given.get("config", "")
    if not isinstance(name, str):
        raise UserError(f"{source} is not a plan: config of rank_rule_of must be text, got {shortened(name)}")
    config = find_config(name)
    known = {f.name: getattr(config.rank, f.name) for f in fields(config.rank)}  # type: ignore[arg-type]
    for key, value in changed.items():
        if not _is_like(key, value, known.get(key)):
            own = ", ".join(f"{name}={text}" for name, text in known.items())
            raise UserError(
                f"{source} is not a plan: expected fields of the rank rule of {given['config']} such as "
                f"{own}, got {key}={shortened(value)}"
            )
    return replace(config, rank=replace(config.rank, **changed))  # type: ignore[type-var]


def _is_like(key: str, value: Any, known: Any) -> bool:
    """Whether ``value`` can replace ``known`` in the field ``key`` of a rank rule."""
    if type(value) is not type(known):
        return False
    if isinstance(value, dict):
        is_complete = known.keys() <= value.keys() <= known.keys() | {"cross-attention"}
        return is_complete and all(type(rank) is int and 0 <= rank <= _LARGEST for rank in value.values())
    if type(value) is int:
        return 1 <= value <= _LARGEST
    if isinstance(value, float):
        return math.isfinite(value) and value >= 0
    rules_of_arms = (arm.rank for arm in CONFIGS.values() if isinstance(arm, Config))
    return key != "part" or value in {getattr(rule, key, None) for rule in rules_of_arms}


def _rank_rule_of(plan: Mapping[str, Any], source: str) -> RankRule:
    adaptive, named = plan["adaptive"], plan["rank_rule"]
    if adaptive and named:
        raise UserError(f"{source} is not a plan: it has adaptive and rank_rule; remove one")
    if named:
        try:
            return named_rank_rule(named)
        except UserError as error:
            raise UserError(f"{source} is not a plan: {error}") from error
    try:
        return AdaptiveRank(**adaptive) if adaptive else rules.GivenRanks(plan["ranks"])
    except TypeError as error:
        raise UserError(
            f"{source} is not a plan: adaptive takes init_r, target_r and shrink; {error}"
        ) from error
