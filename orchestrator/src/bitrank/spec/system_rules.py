"""Rank rules of published systems, which studies compare with (``docs/systems.md``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from bitrank.errors import UserError
from bitrank.spec.rule_interface import Adapters, AttachOptions, Formats, Ranks
from bitrank.spec.rules import SIXTEEN, FixedRank

if TYPE_CHECKING:  # the command line reads configs without importing torch
    from bitrank_adapters import AdapterStart, Codes
    from bitrank_quant import Affine, WeightMatrix
    from torch import Tensor, nn

    from bitrank.spec.adapter_hook import Attached
    from bitrank.spec.inits import Init
    from bitrank.spec.rule_interface import Encode


@dataclass(frozen=True)
class DecomposedRank(FixedRank):
    """The same rank everywhere on the direction of each row, and a trained length per row.

    This is DoRA of Liu et al. 2024, by PEFT. :class:`~bitrank.spec.pruned_rules.DynamicRank` is the
    other method of that name.
    """

    def trained_numbers(self, shape: Sequence[int], rank: int) -> int:
        return rank * sum(shape) + shape[0] if rank else 0

    def attach(self, model: nn.Module, ranks: Ranks, options: AttachOptions) -> Attached:
        from bitrank_adapters import FixedRanks, attach_weight_decomposed

        from bitrank.spec.adapter_hook import Attached

        adapted = attach_weight_decomposed(model, ranks, **options.shared)
        return Attached(adapted, FixedRanks(adapted))


@dataclass(frozen=True)
class PooledRank(FixedRank):
    """The same rank everywhere, on inputs summed over quantization groups of ``group`` (QA-LoRA)."""

    group: int
    own_formats: ClassVar[bool] = True
    needs_hook: ClassVar[bool] = True

    def refusal(self, init: Init) -> str | None:
        if init.residual or init.splits:
            return (
                "adapters on summed inputs change all weights of a group by the same number and cannot start "
                "as a part of a matrix; give init=default"
            )
        if init.allocates:
            return "its start is for adapters with one column for each input; give init=default"
        return None

    def in_format(self, text: str) -> PooledRank:
        from bitrank_quant import parse_format

        return replace(self, group=parse_format(text).block or self.group)

    def check_formats(self, formats: Formats, ranks: Ranks) -> None:
        from bitrank_quant import Affine, parse_format

        for name in (name for name, rank in ranks.items() if rank):
            fmt = parse_format(formats.get(name, SIXTEEN))
            if not (isinstance(fmt, Affine) and fmt.block == self.group and not fmt.double_quant):
                expected = Affine(4, self.group)
                raise UserError(
                    f"adapters on inputs summed over groups of {self.group} merge into the minima of affine "
                    f"groups of that size: expected a format such as {expected} for {name}, got {fmt}"
                )

    def takes(self, shape: Sequence[int]) -> bool:
        return shape[1] % self.group == 0

    def trained_numbers(self, shape: Sequence[int], rank: int) -> int:
        return rank * (shape[0] + shape[1] // self.group)

    def stored_numbers(self, shape: Sequence[int], rank: int) -> int:
        return rank * sum(shape)

    def attach(self, model: nn.Module, ranks: Ranks, options: AttachOptions) -> Attached:
        from bitrank_adapters import PooledRanks, attach_pooled

        from bitrank.spec.adapter_hook import Attached

        adapted = attach_pooled(model, ranks, self.group, **options.shared)
        return Attached(adapted, PooledRanks(adapted))


@dataclass(frozen=True)
class ScalesOnly(Adapters):
    """No adapter: scales and minima of the blocks' formats are trained (PEQA, DWQ), without further bytes."""

    own_formats: ClassVar[bool] = True
    needs_hook: ClassVar[bool] = True
    trains_scales: ClassVar[bool] = True

    def refusal(self, init: Init) -> str | None:
        if init.residual or init.splits or init.allocates:
            return "no adapter exists that could start in another way; give init=default"
        return None

    def check_formats(self, formats: Formats, ranks: Ranks) -> None:
        from bitrank_quant import Float, parse_format, why_no_scales

        parsed = {name: parse_format(formats.get(name, SIXTEEN)) for name in ranks}
        quantized = {name: fmt for name, fmt in parsed.items() if not isinstance(fmt, Float)}
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

    def attach(self, model: nn.Module, ranks: Ranks, options: AttachOptions) -> Attached:
        from bitrank_adapters import TrainedScales, attach_frozen
        from bitrank_quant import train_scales

        from bitrank.spec.adapter_hook import Attached

        adapted = attach_frozen(model, **options.shared)
        return Attached(adapted, TrainedScales(adapted, train_scales(model, list(ranks))))


@dataclass(frozen=True)
class LearnedStepRank(FixedRank):
    """The same rank everywhere, added before the rounding to ``format``, whose grid is trained too (L4Q).

    Training leaves matrices in ``format``, affine integers, and no adapter.
    """

    format: str
    own_formats: ClassVar[bool] = True
    needs_hook: ClassVar[bool] = True

    def refusal(self, init: Init) -> str | None:
        if init.residual or init.splits or init.allocates:
            return (
                "adapters inside of the rounding start at zero: they have no residual, and need the whole "
                "matrix there; give init=default"
            )
        return None

    def in_format(self, text: str) -> LearnedStepRank:
        return replace(self, format=text)

    def check_formats(self, formats: Formats, ranks: Ranks) -> None:
        self._affine()
        for name in (name for name, rank in ranks.items() if rank):
            if (got := formats.get(name, SIXTEEN)) != self.format:
                raise UserError(
                    f"adapters inside of the rounding train the codes of {self.format}: expected this format "
                    f"for {name}, got {got}; give a config with equal formats, or rank 0"
                )

    def start(self, ranks: Ranks, encode: Encode | None) -> AdapterStart:
        from bitrank_adapters import StepStart
        from bitrank_quant import encode_in_parts

        fmt = self._affine()

        def grid(name: str, weight_OI: Tensor) -> tuple[Tensor, Tensor]:
            tensors = encode(name, weight_OI, fmt) if encode else encode_in_parts(fmt, weight_OI)
            return tensors["scale"].view(len(weight_OI), -1), tensors["minimum"].view(len(weight_OI), -1)

        return StepStart(ranks, grid)

    def trained_numbers(self, shape: Sequence[int], rank: int) -> int:
        groups = shape[0] * -(-shape[1] // self._affine().block)
        return rank * sum(shape) + 2 * groups if rank else 0

    def stored_numbers(self, shape: Sequence[int], rank: int) -> int:
        return 0

    def attach(self, model: nn.Module, ranks: Ranks, options: AttachOptions) -> Attached:
        from bitrank_adapters import LearnedSteps, attach_learned_steps
        from bitrank_quant import QuantWeight, save_layers, with_weight

        from bitrank.spec.adapter_hook import Attached

        fmt = self._affine()

        def store(layer: nn.Module, codes: Codes) -> nn.Module:
            before: QuantWeight = layer.quantized  # type: ignore[assignment]
            tensors = fmt.of_codes(codes.codes_GB, codes.step_G, codes.minimum_G)
            weight = QuantWeight.of(tensors, fmt, before.shape, before.compute_dtype)
            return with_weight(weight, {"": layer})[""]

        adapted = attach_learned_steps(model, ranks, fmt.bits, fmt.block, **options.shared)
        return Attached(adapted, LearnedSteps(adapted, store, save_layers))

    def _affine(self) -> Affine:
        """The format. Raises :class:`UserError` for one without a grid of steps and minima in bf16."""
        from bitrank_quant import Affine, parse_format

        fmt = parse_format(self.format)
        if not isinstance(fmt, Affine) or fmt.double_quant:
            raise UserError(
                "steps and minima of groups are trained in affine integers only: expected a format such as "
                f"{Affine(4, 64)}, got {self.format}"
            )
        return fmt
