"""The arms of the study. A new arm is one entry here, and a dataclass in ``rules.py`` if no rule fits.

A :class:`Config` fixes formats and ranks by rules. A :class:`PlannedArm` names a request for a plan: a
planner chooses formats and ranks for each model and task, before the run
(:mod:`bitrank.planning.planned_arms`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from bitrank.errors import UserError, unknown
from bitrank.spec import rules, system_rules
from bitrank.spec.plan_file import read_plan
from bitrank.spec.rule_interface import PrecisionRule, RankRule


@dataclass(frozen=True)
class Config:
    """One arm of the study: a precision rule and a rank rule."""

    precision: PrecisionRule
    rank: RankRule
    family: str  # "baseline", "joint", "encoder-decoder" or "system"
    about: str = ""
    source: str = ""  # the publication that the arm follows; empty for an arm of this project
    settings: Mapping[str, Any] = field(default_factory=dict)  # defaults of the run's fields, such as init

    def as_data(self) -> dict[str, Any]:
        """The arm as plain data. The spec contains it, so a changed arm changes the ids of its runs.

        The spec contains the fields in ``settings`` themselves.
        """
        return {"precision": _rule_data(self.precision), "rank": _rule_data(self.rank)}


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
    quantizer: str = "rtn"
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


def _rule_data(rule: PrecisionRule | RankRule) -> dict[str, Any]:
    return {"rule": type(rule).__name__, **asdict(rule)}  # type: ignore[call-overload]


_UNREQUESTED = ("about", "family", "source")  # fields of a planned arm that change no plan
ENCODER_DECODER = "encoder-decoder"  # family of the arms for models with an encoder and a decoder
SYSTEM = "system"  # family of the published systems that studies compare with; docs/systems.md describes them
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
        rules.AdaptiveRank(12, 4),
        "baseline",
        "AdaLoRA in 16 bits",
        "AdaLoRA; Zhang et al. 2023",
    ),
    "Joint-1": Config(
        rules.BlocksIn("nf4-dq"), rules.AdaptiveRank(12, 4), "joint", "NF4 blocks with AdaLoRA"
    ),
    "Joint-2": Config(
        rules.EdgesHigh("int8", "nf4-dq"),
        rules.AdaptiveRank(12, 4),
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
    "Encoder-8": Config(
        rules.EncoderHigh("int8", "nf4-dq"),
        rules.FixedRank(8),
        ENCODER_DECODER,
        "encoder int8, decoder NF4, rank 8",
    ),
    "Cross-8": Config(
        rules.CrossAttentionHigh("int8", "nf4-dq"),
        rules.FixedRank(8),
        ENCODER_DECODER,
        "cross-attention int8, the rest of the blocks NF4, rank 8",
    ),
    "LoRA-Attention": Config(
        rules.BlocksIn("nf4-dq"),
        rules.RankOn("attention", 8),
        SYSTEM,
        "NF4 blocks, adapters of rank 8 on attention only",
        "selective LoRA; Hu et al. 2022, section 4.2",
    ),
    "LoRA-FFN": Config(
        rules.BlocksIn("nf4-dq"),
        rules.RankOn("ffn", 8),
        SYSTEM,
        "NF4 blocks, adapters of rank 8 on feed-forward parts only",
        "selective LoRA; He et al. 2022, section 4.4",
    ),
    "rsLoRA-Q4": Config(
        rules.BlocksIn("nf4-dq"),
        rules.FixedRank(32),  # at rank 8 every scale policy has the same scale
        SYSTEM,
        "NF4 blocks, rank 32, scale of an adapter by 1/√r",
        "rsLoRA; Kalajdzievski 2023",
        {"scale_policy": "rslora"},
    ),
    "LoftQ-Q4": Config(
        rules.BlocksIn("nf4-dq"),
        rules.FixedRank(8),
        SYSTEM,
        "NF4 blocks, adapters start as the residual of quantization",
        "LoftQ; Li et al. 2024",
        {"init": "loftq"},
    ),
    "LQ-LoRA-Q4": Config(
        rules.BlocksIn("nf4-dq"),
        rules.FixedRank(8),
        SYSTEM,
        "NF4 blocks, adapters start as the residual weighted by the Fisher information",
        "LQ-LoRA; Guo et al. 2024, section 3.3",
        {"init": "lq-lora"},
    ),
    "PiSSA-Q4": Config(
        rules.BlocksIn("nf4-dq"),
        rules.FixedRank(8),
        SYSTEM,
        "NF4 of each matrix without its 8 largest singular triplets, which the adapter starts as",
        "PiSSA; Meng et al. 2024",
        {"init": "pissa"},
    ),
    "GPTQ-Q4": Config(
        rules.BlocksIn("int4-g64"),
        rules.FixedRank(8),
        SYSTEM,
        "int4 blocks by GPTQ, rank 8",
        "GPTQ; Frantar et al. 2023",
        {"quantizer": "gptq"},
    ),
    "DoRA-Weight-Q4": Config(
        rules.BlocksIn("nf4-dq"),
        system_rules.DecomposedRank(8),
        SYSTEM,
        "NF4 blocks, adapters of rank 8 on the direction of each row, and a trained length per row",
        "DoRA, weight-decomposed; Liu et al. 2024",
    ),
    "DoRA-Dynamic-Q4": Config(
        rules.BlocksIn("nf4-dq"),
        system_rules.DynamicRank(12, 8),
        SYSTEM,
        "NF4 blocks, rank 12 pruned to a mean of 8 by the norms of rank-one components",
        "DoRA, dynamic rank; Mao et al. 2024",
    ),
    "QA-LoRA-Q4": Config(
        rules.BlocksIn("int4-g32"),
        system_rules.PooledRank(8, 32),
        SYSTEM,
        "int4 blocks in groups of 32, adapters of rank 8 on sums over groups, which merge exactly",
        "QA-LoRA; Xu et al. 2024",
    ),
}
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
    for key in tuned or {}:
        if key not in tunable:
            raise UserError(f"the rank rule of {name} has no {key!r} to set; it has {', '.join(tunable)}")
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
    ``rank_rule``, such as ``{"name": "ffn-only", "rank": 8}``, a rule does. ``ranks`` is then not used.
    """
    return Config(rules.GivenBits(plan["precision"], plan["shapes"]), _rank_rule_of(plan, source), "joint")


def _rank_rule_of(plan: Mapping[str, Any], source: str) -> RankRule:
    adaptive, named = plan["adaptive"], plan["rank_rule"]
    if adaptive and named:
        raise UserError(f"{source} is not a plan: it has adaptive and rank_rule; remove one")
    try:
        if adaptive:
            return rules.AdaptiveRank(**adaptive)
        return _named_rule(**named) if named else rules.GivenRanks(plan["ranks"])
    except TypeError as error:
        raise UserError(
            f"{source} is not a plan: adaptive takes init_r, target_r and shrink, rank_rule takes name and "
            f"rank; {error}"
        ) from error


def _named_rule(name: str, rank: int) -> RankRule:
    if name not in rules.RANK_RULES:
        raise unknown("rank rule", name, rules.RANK_RULES)
    return rules.RANK_RULES[name].make(rank)
