"""Precision and rank rules of a config: one small dataclass per rule.

A precision rule assigns a format to every matrix. A rank rule assigns a rank to every block matrix and
attaches the adapters. Rules read descriptions of matrices (name, role, layer, shape) and no weights. Rules
that prune ranks are in :mod:`~bitrank.spec.pruned_rules`, other rules of published systems in
:mod:`~bitrank.spec.system_rules`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bitrank.errors import UserError
from bitrank.spec.rule_interface import Adapters, AttachOptions, Formats, Ranks
from bitrank.spec.stacks import last_blocks

if TYPE_CHECKING:  # the command line reads configs without importing torch
    from bitrank_quant import WeightMatrix
    from peft import PeftModel
    from torch import nn

    from bitrank.spec.adapter_hook import AdapterHook, Attached
    from bitrank.spec.inits import Init

SIXTEEN = "bf16"
_PARTS = {
    "attention": ("attention", "cross-attention"),
    "ffn": ("ffn",),
}  # part of a block → roles of its matrices


@dataclass(frozen=True)
class Sixteen:
    """All matrices stay in 16 bits."""

    def assign_formats(self, matrices: Sequence[WeightMatrix]) -> Formats:
        return dict.fromkeys((m.name for m in matrices), SIXTEEN)


@dataclass(frozen=True)
class BlocksIn:
    """One format for all matrices in the transformer blocks; embeddings and heads stay 16-bit (QLoRA)."""

    format: str

    def assign_formats(self, matrices: Sequence[WeightMatrix]) -> Formats:
        return {m.name: self.format if _in_block(m) else SIXTEEN for m in matrices}


@dataclass(frozen=True)
class EdgesHigh:
    """Embeddings, first and last block of each stack in format ``high``; the other blocks in ``low``."""

    high: str
    low: str

    def assign_formats(self, matrices: Sequence[WeightMatrix]) -> Formats:
        last = last_blocks(matrices)
        formats = {}
        for m in matrices:
            edge = m.role == "embedding" or m.layer == 0 or (m.layer is not None and m.layer == last[m.stack])
            formats[m.name] = self.high if edge else self.low if _in_block(m) else SIXTEEN
        return formats


@dataclass(frozen=True)
class ByRole:
    """A format by role, such as attention and FFN; other matrices stay 16-bit.

    Cross-attention is attention, unless it has a format of its own.
    """

    formats: Mapping[str, str]

    def assign_formats(self, matrices: Sequence[WeightMatrix]) -> Formats:
        formats = {}
        for m in matrices:
            in_block = self.formats.get(_role_in(self.formats, m), SIXTEEN)
            formats[m.name] = in_block if _in_block(m) else SIXTEEN
        return formats


@dataclass(frozen=True)
class EncoderHigh:
    """Blocks of the encoder in format ``high``, blocks of the decoder in ``low``; other matrices 16-bit."""

    high: str
    low: str

    def assign_formats(self, matrices: Sequence[WeightMatrix]) -> Formats:
        blocks = _blocks_of_two_stacks(matrices)
        formats = {"encoder": self.high, "decoder": self.low}
        return {m.name: formats[blocks[m.name]] if m.name in blocks else SIXTEEN for m in matrices}


@dataclass(frozen=True)
class CrossAttentionHigh:
    """Cross-attention of an encoder-decoder in format ``high``, the rest of all blocks in ``low``."""

    high: str
    low: str

    def assign_formats(self, matrices: Sequence[WeightMatrix]) -> Formats:
        blocks = _blocks_of_two_stacks(matrices)
        formats = {}
        for m in matrices:
            in_block = self.high if m.role == "cross-attention" else self.low
            formats[m.name] = in_block if m.name in blocks else SIXTEEN
        return formats


@dataclass(frozen=True)
class GivenBits:
    """A precision plan from a file; matrices that it does not name stay 16-bit.

    ``shapes``, if given, are the shapes of the model that the plan was made for. The name of the class is in
    the specs of finished runs, and so in their ids: under another name they would be trained again.
    """

    formats: Mapping[str, str]
    shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)

    def assign_formats(self, matrices: Sequence[WeightMatrix]) -> Formats:
        check_shapes(self.shapes, matrices)
        return {**dict.fromkeys((m.name for m in matrices), SIXTEEN), **self.formats}


class Lora(Adapters):
    """LoRA with fixed ranks."""

    def attach(self, model: nn.Module, ranks: Ranks, options: AttachOptions) -> Attached:
        from bitrank_adapters import attach_lora

        from bitrank.spec.adapter_hook import Attached

        adapted = attach_lora(model, ranks, **options.shared)
        return Attached(adapted, self._hook(adapted, options.total_steps))

    def _hook(self, adapted: PeftModel, total_steps: int) -> AdapterHook:
        from bitrank_adapters import FixedRanks

        return FixedRanks(adapted)


@dataclass(frozen=True)
class FixedRank(Lora):
    """The same rank everywhere (LoRA)."""

    rank: int

    def assign_ranks(self, blocks: Sequence[WeightMatrix]) -> Ranks:
        return {m.name: self.rank for m in blocks}


@dataclass(frozen=True)
class RankByRole(Lora):
    """A rank by role, such as attention and FFN (LoRA with PEFT's ``rank_pattern``).

    Cross-attention is attention, unless it has a rank of its own.
    """

    by_role: Mapping[str, int]

    def assign_ranks(self, blocks: Sequence[WeightMatrix]) -> Ranks:
        from bitrank_adapters import role_ranks

        return role_ranks({m.name: _role_in(self.by_role, m) for m in blocks}, self.by_role)


@dataclass(frozen=True)
class RankOn(Lora):
    """The same rank on one ``part`` of every block, ``attention`` or ``ffn``, and no adapter elsewhere."""

    part: str
    rank: int

    def assign_ranks(self, blocks: Sequence[WeightMatrix]) -> Ranks:
        if not any(m.role in _PARTS[self.part] for m in blocks):
            roles = ", ".join(sorted({m.role for m in blocks}))
            raise UserError(f"no matrix of this model belongs to {self.part}; the roles are {roles}")
        return {m.name: self.rank if m.role in _PARTS[self.part] else 0 for m in blocks}


@dataclass(frozen=True)
class GivenRanks(Lora):
    """A rank plan from a file; matrices that it does not name, or with rank 0, get no adapter."""

    plan: Mapping[str, int]

    def refusal(self, init: Init) -> str | None:
        if init.allocates:
            return "it would replace the ranks of the plan; give init=default, loftq or lq-lora"
        return None

    def assign_ranks(self, blocks: Sequence[WeightMatrix]) -> Ranks:
        return dict(self.plan)


def check_shapes(shapes: Mapping[str, Sequence[int]], matrices: Sequence[WeightMatrix]) -> None:
    """Raise :class:`UserError` if a plan with these ``shapes`` (out, in) was made for another model.

    ``matrices`` are those that the plan may name. A plan without shapes fits every model.
    """
    here = {m.name: m.shape for m in matrices}
    for name, shape in shapes.items():
        if here.get(name) != tuple(shape):
            got = f"got {here[name]}" if name in here else "which does not exist in this model"
            raise UserError(
                f"this plan was made for another model: expected {name} of shape {tuple(shape)}, {got}; "
                "make a plan for this model"
            )
    deepest = last_blocks(m for m in matrices if m.name in shapes)
    for m in matrices:
        if m.layer is not None and m.layer > deepest.get(m.stack, m.layer):
            raise UserError(
                f"this plan was made for a model of fewer blocks: {m.name} is not in it; make a plan for "
                "this model"
            )


def check_adapted_shapes(plan: Mapping[str, Any], matrices: Sequence[WeightMatrix]) -> None:
    """As :func:`check_shapes` for the adapters of ``plan``, which fit a resized vocabulary too."""
    unused = {m.name for m in matrices if not m.adaptable} - plan["ranks"].keys()
    check_shapes({name: shape for name, shape in plan["shapes"].items() if name not in unused}, matrices)


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
