"""Adapted layers with the same input as one autograd function: query, key and value, or gate and up.

Their thin products form one product over the sum of their ranks, in the forward pass and for the gradient of
``down``, and the gradient of the input is accumulated in place. The base products stay separate, with one
matrix decoded at a time. The parent's forward pass computes all outputs first; a layer returns its
precomputed output only during that call and only for the same input tensor. Otherwise it computes alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bitrank_adapters.fused.feed_forward import decoded
from bitrank_adapters.fused.known import known_kind
from bitrank_adapters.fused.linear import Decode, applies, factors, scaled_transpose, up_gradient

# Classes whose forward pass receives the hidden states first and passes them to these layers.
_SHARING = {
    **{
        f"{kind}SelfAttention": ("query", "key", "value")
        for kind in ("Bert", "Roberta", "XLMRoberta", "Camembert", "Electra")
    },
    **{f"{kind}Attention": ("q_proj", "k_proj", "v_proj") for kind in ("Llama", "Mistral", "Qwen2", "Qwen3")},
    **{f"{kind}MLP": ("gate_proj", "up_proj") for kind in ("Llama", "Mistral", "Qwen2", "Qwen3")},
}
_Ready = dict[str, tuple[Tensor, Tensor]]  # layer name → (input, precomputed output)


def share_inputs(model: nn.Module, decoder: Callable[[nn.Module], Decode | None]) -> None:
    """Compute layers of ``model`` that are known to share their input together, in place.

    If one of them is not adapted, has dropout or has no decoder, all of them stay unchanged.
    """
    for module in model.modules():
        names = _SHARING.get(known_kind(module, _SHARING) or "", ())
        decodes = [decode for name in names if (decode := decoded(getattr(module, name), decoder))]
        if names and len(decodes) == len(names):
            _share(module, names, decodes)


def _share(part: Any, names: Sequence[str], decodes: Sequence[Decode]) -> None:
    ready: _Ready = {}
    for name in names:
        layer = getattr(part, name)
        layer.forward = partial(_hand_out, ready, name, layer.forward)
    part.forward = partial(_together, part, names, decodes, ready, part.forward)


def _hand_out(ready: _Ready, name: str, alone: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    source, made = ready.pop(name, (None, None))
    out: Tensor = (
        made if made is not None and source is x and not args and not kwargs else alone(x, *args, **kwargs)
    )
    return out


def _together(
    part: Any,
    names: Sequence[str],
    decodes: Sequence[Decode],
    ready: _Ready,
    plain: Any,
    hidden_states: Tensor,
    *args: Any,
    **kwargs: Any,
) -> Any:
    layers = [getattr(part, name) for name in names]
    # A matrix of rank 0 has no adapter, so the attribute may be missing.
    if not any(getattr(layer, "disable_adapters", True) or layer.merged for layer in layers) and all(
        map(applies, decodes)
    ):
        ready.update(
            zip(
                names,
                ((hidden_states, out) for out in _products(layers, decodes, hidden_states)),
                strict=True,
            )
        )
    try:
        return plain(hidden_states, *args, **kwargs)
    finally:
        ready.clear()


def _products(layers: Sequence[Any], decodes: Sequence[Decode], x: Tensor) -> list[Tensor]:
    downs, ups, scales = zip(*(factors(layer) for layer in layers), strict=True)
    biases = [layer.base_layer.bias for layer in layers]
    outs = Shared.apply(x.reshape(-1, x.shape[-1]), decodes, biases, scales, *downs, *ups)
    return [out_NO.view(*x.shape[:-1], out_NO.shape[-1]) for out_NO in outs]


class Shared(torch.autograd.Function):
    """:class:`~bitrank_adapters.fused.linear.Adapted` of one x (N, in) for several layers.

    In tensor names, S is the sum of their ranks.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_NI: Tensor,
        decodes: Sequence[Decode],
        biases: Sequence[Tensor | None],
        scales: Sequence[float],
        *parts: Tensor,
    ) -> tuple[Tensor, ...]:
        downs, ups = parts[: len(decodes)], parts[len(decodes) :]
        down_SI = torch.cat([down_RI.to(x_NI.dtype) for down_RI in downs])
        ups_RO = [
            scaled_transpose(up_OR, scale, x_NI.dtype) for up_OR, scale in zip(ups, scales, strict=True)
        ]
        ctx.ranks = [len(down_RI) for down_RI in downs]
        # Contiguous: these product shapes also occur in other layers, so oneDNN need not compile further
        # ones.
        thins = [thin_NR.contiguous() for thin_NR in (x_NI @ down_SI.T).split(ctx.ranks, 1)]
        ctx.save_for_backward(x_NI, down_SI, *thins, *ups_RO)
        ctx.decodes, ctx.scales = decodes, scales
        return tuple(
            F.linear(x_NI, decode(), None if bias is None else bias.to(x_NI.dtype)).addmm_(thin_NR, up_RO)
            for decode, bias, thin_NR, up_RO in zip(decodes, biases, thins, ups_RO, strict=True)
        )

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        x_NI, down_SI, *rest = ctx.saved_tensors
        thins, ups_RO = rest[: len(grads)], rest[len(grads) :]
        grad_NS = torch.cat([grad_NO @ up_RO.T for grad_NO, up_RO in zip(grads, ups_RO, strict=True)], 1)
        grad_downs = (grad_NS.T @ x_NI).float().split(ctx.ranks)
        grad_ups = [
            up_gradient(thin_NR, grad_NO, scale)
            for thin_NR, grad_NO, scale in zip(thins, grads, ctx.scales, strict=True)
        ]
        grad_x = (
            _input_gradient(grads, ctx.decodes).addmm_(grad_NS, down_SI) if ctx.needs_input_grad[0] else None
        )
        return grad_x, None, None, None, *grad_downs, *grad_ups


def _input_gradient(grads: Sequence[Tensor], decodes: Sequence[Decode]) -> Tensor:
    made_NI = grads[0] @ decodes[0]()
    for grad_NO, decode in zip(grads[1:], decodes[1:], strict=True):
        made_NI.addmm_(grad_NO, decode())
    return made_NI
