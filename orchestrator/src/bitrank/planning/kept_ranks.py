"""Ranks and bytes of adapters at the end of training, when rules that prune or reduce ranks have done so."""

from __future__ import annotations

from collections.abc import Sequence

from bitrank_quant import WeightMatrix

from bitrank.spec.pruned_rules import PrunedRank, ReducedRank
from bitrank.spec.rule_interface import RankRule, Ranks

ADAPTER_BYTES = 2  # per number: adapters and trained heads train in fp32 and are saved in bf16


def kept_ranks(rule: RankRule, blocks: Sequence[WeightMatrix]) -> Ranks:
    """Ranks at the end of training; a mean for rules that prune."""
    if isinstance(rule, PrunedRank):
        return {name: rule.target_r if rank else 0 for name, rank in rule.assign_ranks(blocks).items()}
    if isinstance(rule, ReducedRank):
        return {matrix.name: min(rule.rank, *matrix.shape) for matrix in blocks}
    return rule.assign_ranks(blocks)


def adapter_bytes(rule: RankRule, blocks: Sequence[WeightMatrix]) -> int:
    """Bytes of the adapters at the end of training."""
    shapes = {matrix.name: matrix.shape for matrix in blocks}
    kept = kept_ranks(rule, blocks)
    return ADAPTER_BYTES * sum(rule.stored_numbers(shapes[name], rank) for name, rank in kept.items())
