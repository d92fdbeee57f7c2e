"""Rank rules that start with more ranks than they keep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from bitrank.errors import UserError
from bitrank.spec.rule_interface import Adapters, AttachOptions, Ranks
from bitrank.spec.rules import Lora, RankOn

if TYPE_CHECKING:  # the command line reads configs without importing torch
    from bitrank_quant import WeightMatrix
    from peft import PeftModel
    from torch import nn

    from bitrank.spec.adapter_hook import AdapterHook, Attached
    from bitrank.spec.inits import Init


def refuse_fixed_starts(init: Init) -> str | None:
    """The reason why adapters whose ranks are pruned cannot start by ``init``; None if they can."""
    if init.splits:
        return (
            "pruning a rank would remove a part of the matrix itself, which the adapter starts as; give "
            "init=default, loftq or lq-lora"
        )
    if init.allocates:
        return "both choose the ranks; give init=default, loftq or lq-lora"
    return None


@dataclass(frozen=True)
class ReducedRank(Lora):
    """LoRA at ``times`` × ``rank``, reduced at the end to as many numbers as a uniform ``rank`` has."""

    rank: int
    times: int = 4
    needs_hook: ClassVar[bool] = True

    def refusal(self, init: Init) -> str | None:
        return refuse_fixed_starts(init)

    def assign_ranks(self, blocks: Sequence[WeightMatrix]) -> Ranks:
        return {m.name: min(self.times * self.rank, *m.shape) for m in blocks}

    def _hook(self, adapted: PeftModel, total_steps: int) -> AdapterHook:
        from bitrank_adapters import ReducedRanks

        return ReducedRanks(adapted, self.rank, total_steps)


@dataclass(frozen=True)
class PrunedRank(Adapters):
    """Every rank starts at ``init_r``; rank-one components are pruned to a mean rank of ``target_r``."""

    init_r: int
    target_r: int
    triplets: ClassVar[bool] = True
    needs_hook: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 1 <= self.target_r < self.init_r:
            raise UserError(
                f"adaptive rank needs 1 ≤ target_r < init_r, got init_r={self.init_r} and "
                f"target_r={self.target_r}"
            )

    def refusal(self, init: Init) -> str | None:
        return refuse_fixed_starts(init)

    def assign_ranks(self, blocks: Sequence[WeightMatrix]) -> Ranks:
        return {m.name: self.init_r for m in blocks}


@dataclass(frozen=True)
class AdaptiveRank(PrunedRank):
    """AdaLoRA: components are pruned by their smoothed sensitivity and its variation.

    ``shrink`` removes pruned ranks from memory when AdaLoRA stops pruning.
    """

    shrink: bool = False

    def attach(self, model: nn.Module, ranks: Ranks, options: AttachOptions) -> Attached:
        from bitrank_adapters import AdaLora, AdaLoraRanks, ShrinkingRanks, attach_adalora

        from bitrank.spec.adapter_hook import Attached

        schedule = AdaLora(self.init_r, self.target_r)
        adapted = attach_adalora(
            model,
            [name for name, rank in ranks.items() if rank],
            schedule,
            total_steps=options.total_steps,
            **options.shared,
        )
        hook = ShrinkingRanks if self.shrink else AdaLoraRanks
        return Attached(adapted, hook(adapted))


@dataclass(frozen=True)
class AdaptiveRankOn(AdaptiveRank):
    """AdaLoRA on one ``part`` of every block, ``attention`` or ``ffn``, and no adapter elsewhere."""

    part: str = "attention"

    def assign_ranks(self, blocks: Sequence[WeightMatrix]) -> Ranks:
        return RankOn(self.part, self.init_r).assign_ranks(blocks)


@dataclass(frozen=True)
class DynamicRank(PrunedRank):
    """Components are pruned by their norm, on a schedule.

    This is DoRA of Mao et al. 2024. :class:`~bitrank.spec.system_rules.DecomposedRank` is the other method of
    that name.
    """

    def attach(self, model: nn.Module, ranks: Ranks, options: AttachOptions) -> Attached:
        from bitrank_adapters import Dynamic, DynamicRanks, attach_dynamic

        from bitrank.spec.adapter_hook import Attached

        schedule = Dynamic(self.init_r, self.target_r)
        adapted = attach_dynamic(
            model, list(ranks), schedule, total_steps=options.total_steps, **options.shared
        )
        return Attached(adapted, DynamicRanks(adapted))


@dataclass(frozen=True)
class LearnedScaleRank(PrunedRank):
    """Ranks in proportion to one trained scale per matrix (ARD-LoRA).

    The loss has λ₁ = ``sparsity`` times the sum of all scales, and λ₂ = ``variation`` times their differences
    between neighbouring layers.
    """

    sparsity: float = 1e-4
    variation: float = 1e-4

    def refusal(self, init: Init) -> str | None:
        if init.residual or init.splits or init.allocates:
            return (
                "an adapter with one scale for all its components starts at zero, since other starts have a "
                "value for each component; give init=default"
            )
        return None

    def attach(self, model: nn.Module, ranks: Ranks, options: AttachOptions) -> Attached:
        from bitrank_adapters import LearnedScaleRanks, LearnedScales, attach_learned_scales

        from bitrank.spec.adapter_hook import Attached

        schedule = LearnedScales(self.init_r, self.target_r, sparsity=self.sparsity, variation=self.variation)
        adapted = attach_learned_scales(
            model, list(ranks), schedule, total_steps=options.total_steps, **options.shared
        )
        return Attached(adapted, LearnedScaleRanks(adapted, schedule))
