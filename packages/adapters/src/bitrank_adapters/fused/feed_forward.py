"""A feed-forward part that keeps what goes into its activation, and makes what comes out of it once more in the backward pass.

The second product's adapter needs that product's input for its gradient, and the activation its own input for its: of a Llama's block
autograd keeps gate, silu(gate), up and their product, four of the widest tensors there are; of a BERT's two. Gate and up (or the one
input of GELU) are enough, since the rest is made from them by a few cheap operations on numbers. That is a quarter to a third of all
that a block keeps, at no product more. It changes no number.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from bitrank_adapters.fused.known import hooked, known_kind, replaced
from bitrank_adapters.fused.linear import ADAPTER, Decode, applies, factors, product, thin_gradients
from bitrank_adapters.fused.row_kernels import Rows

# Their feed-forward part is down(act(gate(x)) · up(x)), and output(act(intermediate(x))).
_GATED = {"LlamaMLP", "MistralMLP", "Qwen2MLP", "Qwen3MLP"}
_BERT_LIKE = {"BertLayer", "RobertaLayer", "XLMRobertaLayer", "CamembertLayer", "ElectraLayer"}


Gradients = Callable[[Tensor], tuple[Tensor, ...]]


class Activation(Protocol):
    """A function of one or two tensors of one shape (N, in)."""

    def value(self, *inputs_NI: Tensor) -> Tensor: ...

    def again(self, *inputs_NI: Tensor) -> tuple[Tensor, Gradients]:
        """The value, and what turns its gradient, which it may overwrite, into those of the inputs."""


class Gelu:
    """x Φ(x) (Hendrycks and Gimpel 2016), by the error function."""

    def value(self, *inputs_NI: Tensor) -> Tensor:
        return F.gelu(inputs_NI[0])

    def again(self, *inputs_NI: Tensor) -> tuple[Tensor, Gradients]:
        return F.gelu(inputs_NI[0]), lambda grad_NI: (torch.ops.aten.gelu_backward(grad_NI, inputs_NI[0]),)


@dataclass(frozen=True)
class SwiGlu:
    """silu(gate) · up (Shazeer 2020), by compiled passes where they serve."""

    rows: Rows | None = None

    def value(self, *inputs_NI: Tensor) -> Tensor:
        # Autograd does not see compiled passes; inside of a function, which says its own gradient, it does not look.
        if self.rows and not torch.is_grad_enabled() and self.rows.serves(*inputs_NI):
            return self.rows.swiglu(*inputs_NI)
        return F.silu(inputs_NI[0]).mul_(inputs_NI[1])

    def again(self, *inputs_NI: Tensor) -> tuple[Tensor, Gradients]:
        gate_NI, up_NI = inputs_NI
        rows = self.rows
        if rows and rows.serves(gate_NI, up_NI):
            return rows.swiglu(gate_NI, up_NI), lambda grad_NI: rows.swiglu_gradients_(
                grad_NI, gate_NI, up_NI
            )
        opened_NI = F.silu(gate_NI)  # once for the value and for the gradient of up

        def gradients(grad_NI: Tensor) -> tuple[Tensor, Tensor]:
            grad_up_NI = opened_NI.mul_(grad_NI)
            return torch.ops.aten.silu_backward(grad_NI.mul_(up_NI), gate_NI), grad_up_NI

        return opened_NI * up_NI, gradients


def fuse_feed_forward(
    model: nn.Module, decoder: Callable[[nn.Module], Decode | None], rows: Rows | None = None
) -> None:
    """Let the feed-forward parts of ``model`` that are known and whose last layer is adapted keep less, in place.

    Others stay as they are: other kinds of block, other activations, adapter dropout, a base layer that is not decoded.
    """
    for module in model.modules():
        part: Any = module
        if (
            known_kind(part, _GATED)
            and _is_silu(part.act_fn)
            and (decode := decoded(part.down_proj, decoder))
        ):
            part.forward = partial(_gated, part, decode, SwiGlu(rows))
        if _is_bert_like(part) and (decode := decoded(part.output.dense, decoder)):
            part.feed_forward_chunk = partial(_bert, part, decode)


def decoded(layer: Any, decoder: Callable[[nn.Module], Decode | None]) -> Decode | None:
    """The decoder of an adapted layer without dropout and without hooks; None where there is none."""
    if ADAPTER not in getattr(layer, "lora_dropout", {}) or not isinstance(
        layer.lora_dropout[ADAPTER], nn.Identity
    ):
        return None
    return None if hooked(*layer.modules()) else decoder(layer.base_layer)


def _is_bert_like(block: Any) -> bool:
    """Whether ``block`` is a BERT's with GELU, and its two halves are what such a block is made of, without
    hooks."""
    kind = known_kind(block, _BERT_LIKE, "feed_forward_chunk")
    if kind is None or not _is_gelu(block.intermediate.intermediate_act_fn):
        return False
    name = kind.removesuffix("Layer")
    halves = known_kind(block.intermediate, {f"{name}Intermediate"}) and known_kind(
        block.output, {f"{name}Output"}
    )
    return bool(halves) and not hooked(block.intermediate, block.output)


def _is_silu(activation: Any) -> bool:
    silu = isinstance(activation, nn.SiLU) or type(activation).__name__ == "SiLUActivation"
    return silu and not replaced(activation) and not hooked(activation)


def _is_gelu(activation: Any) -> bool:
    gelu = type(activation).__name__ == "GELUActivation" and activation.act is F.gelu
    return gelu and not replaced(activation) and not hooked(activation)


def _gated(part: Any, decode: Decode, activation: Activation, x: Tensor) -> Tensor:
    return _activated(part.down_proj, decode, activation, part.gate_proj(x), part.up_proj(x))


def _bert(block: Any, decode: Decode, attended_BTD: Tensor) -> Tensor:
    output = block.output
    found_BTD = _activated(output.dense, decode, Gelu(), block.intermediate.dense(attended_BTD))
    out_BTD: Tensor = output.LayerNorm(output.dropout(found_BTD) + attended_BTD)
    return out_BTD


def _activated(layer: Any, decode: Decode, activation: Activation, *inputs: Tensor) -> Tensor:
    """``layer`` on the activation's value, by the fused product unless its adapter is off or merged or its base multiplies otherwise."""
    # A matrix whose ranks were all pruned has lost its adapter.
    if getattr(layer, "disable_adapters", True) or layer.merged or not applies(decode):
        plain: Tensor = layer(activation.value(*inputs))
        return plain
    rows = [part.reshape(-1, part.shape[-1]) for part in inputs]
    out_NO: Tensor = Activated.apply(activation, decode, layer.base_layer.bias, *factors(layer), *rows)
    return out_NO.view(*inputs[0].shape[:-1], out_NO.shape[-1])


class Activated(torch.autograd.Function):
    """:class:`~bitrank_adapters.fused.linear.Adapted` of an activation's value, which is not kept but made again."""

    @staticmethod
    def forward(
        ctx: Any, activation: Activation, decode: Decode, bias: Tensor | None, down_RI: Tensor, up_OR: Tensor, scale: float,
        *inputs_NI: Tensor,
    ) -> Tensor:  # fmt: skip
        out_NO, thin = product(activation.value(*inputs_NI), decode, bias, down_RI, up_OR, scale)
        ctx.save_for_backward(*thin, *inputs_NI)
        ctx.activation, ctx.decode, ctx.scale = activation, decode, scale
        return out_NO

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        thin_NR, down_16, up_RO, *inputs_NI = ctx.saved_tensors  # once: what unpacks them may do so only once
        thin = (thin_NR, down_16, up_RO)
        value_NI, gradients = ctx.activation.again(*inputs_NI)
        grad_NR, grad_down, grad_up = thin_gradients(value_NI, thin, ctx.scale, grads[0])
        del value_NI
        given: tuple[Tensor | None, ...] = (None,) * len(inputs_NI)
        if any(ctx.needs_input_grad[6:]):
            grad_x = (grads[0] @ ctx.decode()).addmm_(grad_NR, down_16)
            given = gradients(grad_x)
        return None, None, None, grad_down, grad_up, None, *given
