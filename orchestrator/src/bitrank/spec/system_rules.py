"""Rank rules of published systems, which studies compare with (``docs/systems.md``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from bitrank.errors import UserError
from bitrank.spec.rule_interface import Adapters, Bits, Ranks
from bitrank.spec.rules import SIXTEEN, FixedRank

if TYPE_CHECKING:  # the command line reads configs without importing torch
    from bitrank_adapters import AdapterScale
    from bitrank_quant import WeightMatrix
    from torch import nn

    from bitrank.spec.adapter_hook import Attached
    from bitrank.spec.inits import Init


@dataclass(frozen=True)
class DecomposedRank(FixedRank):
    """The same rank everywhere on the direction of each row, and a trained length per row.

    This is DoRA of Liu et al. 2024, by PEFT. :class:`~bitrank.spec.pruned_rules.DynamicRank` is the
    other method of that name.
    """

    def trained_numbers(self, shape: Sequence[int], rank: int) -> int:
        return rank * sum(shape) + shape[0] if rank else 0

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
        from bitrank_adapters import FixedRanks, attach_weight_decomposed

        from bitrank.spec.adapter_hook import Attached

        adapted = attach_weight_decomposed(model, ranks, scale=scale, heads=heads, seed=seed)
        return Attached(adapted, FixedRanks(adapted))


@dataclass(frozen=True)
class PooledRank(FixedRank):
    """The same rank everywhere, on inputs summed over quantization groups of ``group`` (QA-LoRA)."""

    group: int
    own_formats: ClassVar[bool] = True
    needs_hook: ClassVar[bool] = True

    def refusal(self, init: Init) -> str | None:
        if init.residual or init.principal:
            return (
                "adapters on summed inputs change all weights of a group by the same number and cannot start "
                "as a part of a matrix; give init=default"
            )
        return None

    def check_formats(self, bits: Bits, ranks: Ranks) -> None:
        from bitrank_quant import Affine, parse_format

        for name in (name for name, rank in ranks.items() if rank):
            fmt = parse_format(bits.get(name, SIXTEEN))
            if not (isinstance(fmt, Affine) and fmt.block == self.group and not fmt.double_quant):
                expected = Affine(4, self.group)
                raise UserError(
                    f"adapters on inputs summed over groups of {self.group} merge into the minima of affine "
                    f"groups of that size: expected a format such as {expected} for {name}, got {fmt}"
                )

    def trained_numbers(self, shape: Sequence[int], rank: int) -> int:
        return rank * (shape[0] + shape[1] // self.group)

    def stored_numbers(self, shape: Sequence[int], rank: int) -> int:
        return rank * sum(shape)

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
        from bitrank_adapters import PooledRanks, attach_pooled

        from bitrank.spec.adapter_hook import Attached

        adapted = attach_pooled(model, ranks, self.group, scale=scale, heads=heads, seed=seed)
        return Attached(adapted, PooledRanks(adapted))


@dataclass(frozen=True)
class ScalesOnly(Adapters):
    """No adapter: scales and minima of the blocks' formats are trained (PEQA, DWQ), without further bytes."""

    own_formats: ClassVar[bool] = True
    needs_hook: ClassVar[bool] = True
    trains_scales: ClassVar[bool] = True

    def refusal(self, init: Init) -> str | None:
        if init.residual or init.principal:
            return "no adapter exists that could start as a part of a matrix; give init=default"
        return None

    def check_formats(self, bits: Bits, ranks: Ranks) -> None:
        from bitrank_quant import Float, parse_format, why_no_scales

        formats = {name: parse_format(bits.get(name, SIXTEEN)) for name in ranks}
        quantized = {name: fmt for name, fmt in formats.items() if not isinstance(fmt, Float)}
        for name, fmt in quantized.items():
            if (reason := why_no_scales(fmt)) is not None:
                raise UserError(
                    f"the scales of {name} in {fmt} cannot be trained: {reason}; give int4-g64 or another "
                    "affine, symmetric or int8 format"
                )
        if not quantized:
            raise UserError(
                "no matrix of the blocks is quantized, so there is no scale to train; give int4-g64 or "
                "another affine, symmetric or int8 format"
            )

    def trained_numbers(self, shape: Sequence[int], rank: int) -> int:
        return 0

    def trained_in_format(self, shape: tuple[int, int], text: str) -> int:
        from bitrank_quant import parse_format, scale_numbers

        return scale_numbers(parse_format(text), shape)

    def assign_ranks(self, blocks: Sequence[WeightMatrix]) -> Ranks:
        return {m.name: 0 for m in blocks}

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
        from bitrank_adapters import TrainedScales, attach_frozen
        from bitrank_quant import train_scales

        from bitrank.spec.adapter_hook import Attached

        adapted = attach_frozen(model, scale=scale, heads=heads, seed=seed)
        return Attached(adapted, TrainedScales(adapted, train_scales(model, list(ranks))))
