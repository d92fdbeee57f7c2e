"""L4Q (Jeon et al. 2025): adapters inside of the rounding, and trained steps of the grid.

y = Q(W + s B A) x, with Q(w) = clamp(round((w − m)/Δ), 0, top) · Δ + m per group of neighbouring inputs. W
is frozen in 16 bits; A, B, the steps Δ and the minima m are trained. Gradients are those of learned step
sizes (LSQ, Esser et al. 2020, equation 3, with a minimum as in L4Q), and that of the rounding is 1 inside of
the grid. Δ and m are rounded to bf16 as their format stores them, so every pass computes with the matrix that
will be stored. At the end the codes of Q(W + s B A) replace each matrix, and no adapter is left.

A step is trained as its relative change and a minimum in initial steps, Δ = Δ₀ (1 + u) and m = m₀ + Δ₀ v,
since Adam changes every number by about the learning rate, whatever its size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from bitrank_adapters.attach import DEFAULT_SCALE, attach_lora
from bitrank_adapters.errors import AdapterError
from bitrank_adapters.export import write_lora
from bitrank_adapters.plans import RankPlan, positive_ranks
from bitrank_adapters.rank_hooks import FixedRanks, adapted
from bitrank_adapters.scales import AdapterScale
from bitrank_adapters.stored import STORED_BYTES, STORED_DTYPE, saved_parameters

_ADAPTER = "default"
_HEADS = ".modules_to_save."
_TINY = torch.finfo(torch.bfloat16).tiny


@dataclass(frozen=True)
class Codes:
    """A matrix on its grid: ``codes_GB`` (uint8), and the ``step_G`` and ``minimum_G`` of each group (bf16).

    Groups follow each other along the rows. A row whose length is no multiple of the group is padded with its
    last value.
    """

    codes_GB: Tensor
    step_G: Tensor
    minimum_G: Tensor


Store = Callable[[nn.Module, Codes], nn.Module]
"""Returns a layer like the given one with the matrix of the codes."""
Write = Callable[[Mapping[str, nn.Module], Path], None]
"""Writes layers that :data:`Store` returned, by name of the matrix, into a folder."""
Grid = Callable[[str, Tensor], tuple[Tensor, Tensor]]
"""Returns step and minimum of every group, (O, G) each, for a matrix by its name and weight (O, I)."""


class Quantize(torch.autograd.Function):
    """Q(w) of weights (O, G, B) for steps and minima (O, G), all fp32, with codes from 0 to ``top``.

    Gradients per weight, with v = (w − m)/Δ: of w 1 for v in [0, top] and 0 outside; of Δ round(v) − v
    inside, and the code outside; of m 0 inside and 1 outside.
    """

    @staticmethod
    def forward(ctx: Any, weight_OGB: Tensor, step_OG: Tensor, minimum_OG: Tensor, top: int) -> Tensor:
        ctx.save_for_backward(weight_OGB, step_OG, minimum_OG)
        ctx.top = top
        codes_OGB = nearest_codes(weight_OGB, step_OG, minimum_OG, top)
        return torch.addcmul(minimum_OG[..., None], codes_OGB, step_OG[..., None])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        weight_OGB, step_OG, minimum_OG = ctx.saved_tensors
        ratio_OGB = (weight_OGB - minimum_OG[..., None]) / step_OG[..., None]
        inside_OGB = (ratio_OGB >= 0) & (ratio_OGB <= ctx.top)
        codes_OGB = ratio_OGB.round().clamp_(0, ctx.top)
        slope_OGB = torch.where(inside_OGB, codes_OGB - ratio_OGB, codes_OGB)
        outside_OGB = grads[0].masked_fill(inside_OGB, 0.0)
        return grads[0] - outside_OGB, (grads[0] * slope_OGB).sum(-1), outside_OGB.sum(-1), None


def nearest_codes(weight_OGB: Tensor, step_OG: Tensor, minimum_OG: Tensor, top: int) -> Tensor:
    """The codes of weights (O, G, B) on the grid, as fp32."""
    return ((weight_OGB - minimum_OG[..., None]) / step_OG[..., None]).round_().clamp_(0, top)


class LearnedStepLinear(nn.Module):
    """A linear layer (…, in) → (…, out) by Q(W + s B A), in the place of an adapted ``layer`` of PEFT.

    W, and the first step and minimum of every group, are set by :meth:`start`. Without it they are those of
    the base layer's own weight.
    """

    def __init__(self, layer: Any, bits: int, group: int) -> None:
        super().__init__()
        self.base_layer, self.lora_A, self.lora_B = layer.base_layer, layer.lora_A, layer.lora_B
        self.lora_dropout, self.r, self.scaling = layer.lora_dropout, layer.r, layer.scaling
        self.top, self.group = 2**bits - 1, group
        # PEFT sets this attribute on layers with another formula; the fused forms leave such layers alone.
        self.lora_variant = {_ADAPTER: type(self)}
        self.in_features, self.out_features = layer.in_features, layer.out_features
        like = layer.lora_A[_ADAPTER].weight
        shape = (self.out_features, -(-self.in_features // group))
        self.lora_step = nn.ParameterDict({_ADAPTER: like.new_zeros(shape)})
        self.lora_minimum = nn.ParameterDict({_ADAPTER: like.new_zeros(shape)})
        for name in ("frozen_OI", "first_step_OG", "first_minimum_OG"):
            self.register_buffer(name, None, persistent=False)

    @torch.no_grad()
    def start(self, weight_OI: Tensor, step_OG: Tensor, minimum_OG: Tensor) -> None:
        """Train from Q(W) for W = ``weight_OI``, with these steps and minima of the groups."""
        device = self.lora_step[_ADAPTER].device
        self.frozen_OI = weight_OI.detach().to(device)
        self.first_step_OG, self.first_minimum_OG = step_OG.float().to(device), minimum_OG.float().to(device)

    def base_weight(self) -> Tensor:
        """The (out, in) matrix of the base layer."""
        weight: Any = self.base_layer.weight
        transposed = isinstance(self.base_layer, Conv1D)
        return weight.detach().T if transposed else weight.detach()  # type: ignore[no-any-return]

    def grid(self) -> tuple[Tensor, Tensor]:
        """Step and minimum of every group (O, G), as their format stores them."""
        step_OG = self.first_step_OG * (1 + self.lora_step[_ADAPTER])
        minimum_OG = self.first_minimum_OG + self.first_step_OG * self.lora_minimum[_ADAPTER]
        return _as_bf16(step_OG).clamp_min(_TINY), _as_bf16(minimum_OG)

    def groups(self) -> Tensor:
        """W + s B A in fp32, in groups (O, G, B)."""
        if self.frozen_OI is None:
            weight_OI = self.base_weight()
            self.start(weight_OI, *full_range(weight_OI, self.group, self.top))
        update_OI = self.lora_B[_ADAPTER].weight @ self.lora_A[_ADAPTER].weight
        return in_groups(self.frozen_OI + self.scaling[_ADAPTER] * update_OI, self.group)

    def weight(self) -> Tensor:
        """Q(W + s B A), (out, in) in fp32."""
        values_OGB: Tensor = Quantize.apply(self.groups(), *self.grid(), self.top)
        return values_OGB.flatten(1)[:, : self.in_features]

    @torch.no_grad()
    def codes(self) -> Codes:
        """Q(W + s B A) as it is stored."""
        groups_OGB = self.groups()  # first, since it may start the layer
        step_OG, minimum_OG = self.grid()
        codes_OGB = nearest_codes(groups_OGB, step_OG, minimum_OG, self.top)
        return Codes(
            codes_OGB.to(torch.uint8).flatten(0, 1),
            step_OG.flatten().to(torch.bfloat16),
            minimum_OG.flatten().to(torch.bfloat16),
        )

    def forward(self, input: Tensor) -> Tensor:
        bias = getattr(self.base_layer, "bias", None)
        return F.linear(input, self.weight().to(input.dtype), None if bias is None else bias.to(input.dtype))


def _as_bf16(values: Tensor) -> Tensor:
    """``values`` rounded to bf16, in fp32; the gradient passes unchanged."""
    return values + (values.to(torch.bfloat16).float() - values).detach()


def in_groups(weight_OI: Tensor, group: int) -> Tensor:
    """(O, I) → (O, G, ``group``) in fp32; a row is padded with its last value."""
    weight_OI = weight_OI.float()
    if missing := -weight_OI.shape[1] % group:
        weight_OI = torch.cat([weight_OI, weight_OI[:, -1:].expand(-1, missing)], dim=1)
    return weight_OI.unflatten(1, (-1, group))


def full_range(weight_OI: Tensor, group: int, top: int) -> tuple[Tensor, Tensor]:
    """Step and minimum (O, G) with which codes 0 to ``top`` span every group, rounded to bf16."""
    low_OG, high_OG = torch.aminmax(in_groups(weight_OI.detach(), group), dim=-1)
    minimum_OG = low_OG.to(torch.bfloat16).float()
    step_OG = ((high_OG - minimum_OG) / top).to(torch.bfloat16).clamp_min(_TINY)
    return step_OG.float(), minimum_OG


class StepStart:
    """Keeps the unquantized weights of the matrices of ``ranks``, and starts their adapters from these.

    ``grid`` chooses the first steps and minima. Where the codes of the stored matrix are not the nearest on
    that grid, as a quantizer may choose, W is the stored value, so that Q(W) is the stored matrix.
    """

    def __init__(self, ranks: RankPlan, grid: Grid) -> None:
        self._ranks, self._grid = positive_ranks(ranks), grid
        self._found: dict[str, tuple[Tensor, Tensor, Tensor]] = {}

    def split(self, name: str, weight_OI: Tensor, stored: Callable[[Tensor], Tensor]) -> Tensor:
        """Keep ``weight_OI``; all of it is stored."""
        if name in self._ranks:
            self._found[name] = (weight_OI.detach().clone(), *self._grid(name, weight_OI))
        return weight_OI

    @torch.no_grad()
    def write(self, model: PeftModel) -> None:
        """Start every adapter of ``model``. Raises :class:`AdapterError` for one without a weight."""
        for name, layer in adapted(model):
            if name not in self._found:
                raise AdapterError(
                    f"{name!r} was stored before its weight could be kept; give it a format of few bits"
                )
            layer.start(*self._found.pop(name))
            stored_OI, step_OG = layer.base_weight().float(), layer.grid()[0]
            half_OI = 0.5 * step_OG.repeat_interleave(layer.group, dim=1)[:, : layer.in_features]
            is_nearest_OI = (layer.weight() - stored_OI).abs() < half_OI
            layer.frozen_OI = layer.frozen_OI.where(is_nearest_OI, stored_OI.to(layer.frozen_OI.dtype))


def attach_learned_steps(
    model: nn.Module,
    plan: RankPlan,
    bits: int,
    group: int,
    *,
    scale: AdapterScale = DEFAULT_SCALE,
    heads: Sequence[str] = (),
    seed: int = 0,
) -> PeftModel:
    """Attach adapters of ``plan`` whose sum with the matrix is rounded to codes of ``bits`` in groups.

    As :func:`~bitrank_adapters.attach_lora` otherwise, whose errors it raises.
    """
    peft_model = attach_lora(model, plan, scale=scale, heads=heads, seed=seed)
    for name, layer in adapted(peft_model):
        peft_model.base_model.model.set_submodule(name, LearnedStepLinear(layer, bits, group))
    return peft_model


class LearnedSteps(FixedRanks):
    """L4Q: constant ranks while it trains; :meth:`finish` leaves quantized matrices and no adapter.

    ``store`` makes the layers that replace the adapted ones, ``write`` their file.
    """

    def __init__(self, model: PeftModel, store: Store, write: Write) -> None:
        super().__init__(model)
        self._store, self._write = store, write
        self._layers: dict[str, nn.Module] = {}

    def ranks(self) -> dict[str, int]:
        return super().ranks() | dict.fromkeys(self._layers, 0)

    def finish(self) -> None:
        """Replace every adapted layer by one with the codes of its Q(W + s B A)."""
        for name, layer in adapted(self._model):
            self._layers[name] = self._store(layer.base_layer, layer.codes())
            self._model.base_model.model.set_submodule(name, self._layers[name])

    def stored_bytes(self) -> int:
        """Bytes of the trained heads: what the adapters learn is in the codes of the matrices."""
        return STORED_BYTES * sum(parameter.numel() for parameter in self._heads().values())

    def save(self, folder: Path) -> None:
        """Save the trained heads as an adapter without ranks (bf16), and the codes of the matrices.

        Raises :class:`AdapterError` before :meth:`finish`.
        """
        if adapted(self._model):
            raise AdapterError("the adapters are not in the codes of their matrices yet; call finish first")
        with self.as_stored():
            write_lora(self._model, folder, {}, STORED_DTYPE)
        self._write(self._layers, folder)

    @torch.no_grad()
    def _take_stored_form(self) -> None:
        for parameter in self._heads().values():
            parameter.copy_(parameter.to(STORED_DTYPE))

    def _heads(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in saved_parameters(self._model).items() if _HEADS in name}
