"""Precision and rank rules of a config: one small dataclass per rule.

A precision rule assigns a format to every matrix. A rank rule assigns a rank to every block matrix and
attaches the adapters. Rules read descriptions of matrices (name, role, layer, shape) and no weights. Rules of
published systems are in :mod:`~bitrank.spec.system_rules`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from bitrank.errors import UserError
from bitrank.spec.rule_interface import Adapters, Bits, RankRule, Ranks

if TYPE_CHECKING:  # the command line reads configs without importing torch
    from bitrank_adapters import AdapterScale
    from bitrank_quant import WeightMatrix
    from peft import PeftModel
    from torch import nn

    from bitrank.spec.adapter_hook import AdapterHook, Attached
    from bitrank.spec.inits import Init

SIXTEEN = "bf16"
_PARTS = {"attention": ("attention", "cross-attention"), "ffn": ("ffn",)}  # of a block: roles of its matrices


@dataclass(frozen=True)
class Sixteen:
    """All matrices stay in 16 bits."""

    def assign_formats(self, matrices: Sequence[WeightMatrix]) -> Bits:
        return dict.fromkeys((m.name for m in matrices), SIXTEEN)


@dataclass(frozen=True)
class BlocksIn:
    """One format for all matrices in the transformer blocks; embeddings and heads stay 16-bit (QLoRA)."""

    format: str

    def assign_formats(self, matrices: Sequence[WeightMatrix]) -> Bits:
        return {m.name: self.format if _in_block(m) else SIXTEEN for m in matrices}


@dataclass(frozen=True)
class EdgesHigh:
    """Embeddings, first and last block in format ``high``; the other blocks in ``low``."""

    high: str
    low: str

    def assign_formats(self, matrices: Sequence[WeightMatrix]) -> Bits:
        last = max((m.layer for m in matrices if m.layer is not None), default=0)
        bits = {}
        for m in matrices:
            edge = m.role == "embedding" or m.layer in (0, last)
            bits[m.name] = self.high if edge else self.low if _in_block(m) else SIXTEEN
        return bits


@dataclass(frozen=True)
class ByRole:
    """A format by role, such as attention and FFN; other matrices stay 16-bit.

    Cross-attention is attention, unless it has a format of its own.
    """

    formats: Mapping[str, str]

    def assign_formats(self, matrices: Sequence[WeightMatrix]) -> Bits:
        bits = {}
        for m in matrices:
            in_block = self.formats.get(_role_in(self.formats, m), SIXTEEN)
            bits[m.name] = in_block if _in_block(m) else SIXTEEN
        return bits


@dataclass(frozen=True)
class EncoderHigh:
    """Blocks of the encoder in format ``high``, blocks of the decoder in ``low``; other matrices 16-bit."""

    high: str
    low: str

    def assign_formats(self, matrices: Sequence[WeightMatrix]) -> Bits:
        blocks = _blocks_of_two_stacks(matrices)
        formats = {"encoder": self.high, "decoder": self.low}
        return {m.name: formats[blocks[m.name]] if m.name in blocks else SIXTEEN for m in matrices}


@dataclass(frozen=True)
class CrossAttentionHigh:
    """Cross-attention of an encoder-decoder in format ``high``, the rest of all blocks in ``low``."""

    high: str
    low: str

    def assign_formats(self, matrices: Sequence[WeightMatrix]) -> Bits:
        blocks = _blocks_of_two_stacks(matrices)
        bits = {}
        for m in matrices:
            in_block = self.high if m.role == "cross-attention" else self.low
            bits[m.name] = in_block if m.name in blocks else SIXTEEN
        return bits


@dataclass(frozen=True)
class GivenBits:
    """A precision plan from a file; matrices that it does not name stay 16-bit.

    ``shapes``, if given, are the shapes of the model that the plan was made for.
    """

    formats: Mapping[str, str]
    shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)

    def assign_formats(self, matrices: Sequence[WeightMatrix]) -> Bits:
        here = {m.name: m.shape for m in matrices}
        for name, shape in self.shapes.items():
            if here.get(name) != tuple(shape):
                got = f"got {here[name]}" if name in here else "which does not exist in this model"
                raise UserError(
                    f"this plan was made for another model: expected {name} of shape {tuple(shape)}, {got}; "
                    "make a plan for this model"
                )
        return {**dict.fromkeys((m.name for m in matrices), SIXTEEN), **self.formats}


class _Lora(Adapters):
    """LoRA with fixed ranks."""

    def attach(
        self,
        model: nn.Module,
        ranks: Ranks,
        *,
        total_steps: int,
        scale: AdapterScale,
        heads: list[str],
        seed: int,
    ) -> Attached:
        from bitrank_adapters import attach_lora

        from bitrank.spec.adapter_hook import Attached

        adapted = attach_lora(model, ranks, scale=scale, heads=heads, seed=seed)
        return Attached(adapted, self._hook(adapted, total_steps))

    def _hook(self, adapted: PeftModel, total_steps: int) -> AdapterHook:
        from bitrank_adapters import FixedRanks

        return FixedRanks(adapted)


@dataclass(frozen=True)
class FixedRank(_Lora):
    """The same rank everywhere (LoRA)."""

    rank: int

    def assign_ranks(self, blocks: Sequence[WeightMatrix]) -> Ranks:
        return {m.name: self.rank for m in blocks}


@dataclass(frozen=True)
class RankByRole(_Lora):
    """A rank by role, such as attention and FFN (LoRA with PEFT's ``rank_pattern``).

    Cross-attention is attention, unless it has a rank of its own.
    """

    by_role: Mapping[str, int]

    def assign_ranks(self, blocks: Sequence[WeightMatrix]) -> Ranks:
        from bitrank_adapters import role_ranks

        return role_ranks({m.name: _role_in(self.by_role, m) for m in blocks}, self.by_role)


@dataclass(frozen=True)
class RankOn(_Lora):
    """The same rank on one ``part`` of every block, ``attention`` or ``ffn``, and no adapter elsewhere."""

    part: str
    rank: int

    def assign_ranks(self, blocks: Sequence[WeightMatrix]) -> Ranks:
        if not any(m.role in _PARTS[self.part] for m in blocks):
            roles = ", ".join(sorted({m.role for m in blocks}))
            raise UserError(f"no matrix of this model belongs to {self.part}; the roles are {roles}")
        return {m.name: self.rank if m.role in _PARTS[self.part] else 0 for m in blocks}


@dataclass(frozen=True)
class GivenRanks(_Lora):
    """A rank plan from a file; matrices that it does not name, or with rank 0, get no adapter."""

    plan: Mapping[str, int]

    def assign_ranks(self, blocks: Sequence[WeightMatrix]) -> Ranks:
        return dict(self.plan)


PRUNED_PRINCIPAL = (
    "pruning a rank would remove a part of the matrix itself, which the adapter starts as; give "
    "init=default, loftq or lq-lora"
)


@dataclass(frozen=True)
class ReducedRank(_Lora):
    """LoRA at ``times`` × ``rank``, reduced at the end to as many numbers as a uniform ``rank`` has."""

    rank: int
    times: int = 4

    def refusal(self, init: Init) -> str | None:
        return PRUNED_PRINCIPAL if init.principal else None

    def assign_ranks(self, blocks: Sequence[WeightMatrix]) -> Ranks:
        return {m.name: min(self.times * self.rank, *m.shape) for m in blocks}

    def _hook(self, adapted: PeftModel, total_steps: int) -> AdapterHook:
        from bitrank_adapters import ReducedRanks

        return ReducedRanks(adapted, self.rank, total_steps)


@dataclass(frozen=True)
class AdaptiveRank(Adapters):
    """AdaLoRA: every rank starts at ``init_r`` and the mean rank ends at ``target_r``.

    ``shrink`` removes pruned ranks from memory when AdaLoRA stops pruning.
    """

    init_r: int
    target_r: int
    shrink: bool = False
    triplets: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_schedule(self.init_r, self.target_r)

    def refusal(self, init: Init) -> str | None:
        return PRUNED_PRINCIPAL if init.principal else None

    def assign_ranks(self, blocks: Sequence[WeightMatrix]) -> Ranks:
        return {m.name: self.init_r for m in blocks}

    def attach(
        self,
        model: nn.Module,
        ranks: Ranks,
        *,
        total_steps: int,
        scale: AdapterScale,
        heads: list[str],
        seed: int,
    ) -> Attached:
        from bitrank_adapters import AdaLora, AdaLoraRanks, ShrinkingRanks, attach_adalora

        from bitrank.spec.adapter_hook import Attached

        schedule = AdaLora(self.init_r, self.target_r)
        adapted = attach_adalora(
            model, list(ranks), schedule, total_steps=total_steps, scale=scale, heads=heads, seed=seed
        )
        hook = ShrinkingRanks if self.shrink else AdaLoraRanks
        return Attached(adapted, hook(adapted))


def check_schedule(init_r: int, target_r: int) -> None:
    if not 1 <= target_r < init_r:
        raise UserError(
            f"adaptive rank needs 1 ≤ target_r < init_r, got init_r={init_r} and target_r={target_r}"
        )


def _in_block(matrix: WeightMatrix) -> bool:
    return matrix.layer is not None and matrix.role != "embedding"


def _role_in(by_role: Mapping[str, object], matrix: WeightMatrix) -> str:
    """The role of ``matrix`` as ``by_role`` names it: attention for cross-attention without an entry."""
    is_like_attention = matrix.role == "cross-attention" and matrix.role not in by_role
    return "attention" if is_like_attention else matrix.role


def _blocks_of_two_stacks(matrices: Sequence[WeightMatrix]) -> dict[str, str]:
    """{block matrix: encoder or decoder}, by the first part of its name that is one of the two.

    Raises :class:`UserError` unless both stacks exist: BERT's blocks are in an ``encoder`` too.
    """
    sides = {}
    for m in matrices:
        side = next((part for part in m.name.split(".") if part in ("encoder", "decoder")), None)
        if side is not None and _in_block(m):
            sides[m.name] = side
    if set(sides.values()) != {"encoder", "decoder"}:
        found = ", ".join(sorted(set(sides.values()))) or "neither"
        raise UserError(
            "this config needs an encoder-decoder such as T5 or BART, with blocks in an encoder and in a "
            f"decoder; this model has {found}. Give another config, such as B-Q4"
        )
    return sides


@dataclass(frozen=True)
class NamedRankRule:
    """A rule that a plan file can name as ``rank_rule``; ``make`` takes the rank."""

    about: str
    make: Callable[[int], RankRule]


RANK_RULES: dict[str, NamedRankRule] = {
    "uniform": NamedRankRule("the same rank on every matrix of the blocks", FixedRank),
    "attention-only": NamedRankRule("on attention, no adapter elsewhere", partial(RankOn, "attention")),
    "ffn-only": NamedRankRule("on feed-forward parts, no adapter elsewhere", partial(RankOn, "ffn")),
    "train-then-reduce": NamedRankRule("at 4 × the rank, then the largest directions are kept", ReducedRank),
}
