"""Rotary position embedding as one compiled pass, forward and backward.

transformers computes it as a dozen operations per layer, with two dozen for the gradients: for query and key
each two products, a negated half, a concatenation and a sum. A model's attention looks the function up by
name in its module's globals. The fused form gives the forward pass a copy of these globals with another
function under that name, so other models keep theirs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import FunctionType, MethodType
from typing import Any

from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from bitrank_trainer.fused.row_kernels import Rows

Plain = Callable[..., tuple[Tensor, Tensor]]
_NAME = "apply_rotary_pos_emb"
_ATTENTIONS = tuple(
    f"{kind}Attention" for kind in ("Llama", "Mistral", "Qwen2", "Qwen3")
)  # attentions that rotate (first half, second half) of a head as pairs


def fuse_rotary(model: nn.Module, rows: Rows) -> None:
    """Replace the rotary embedding in known attention layers of ``model`` by ``rows``, in place.

    Tensors that ``rows`` does not serve use the original function.
    """
    for module in model.modules():
        kinds = {kind.__name__ for kind in type(module).__mro__}  # sharding subclasses the block's class
        forward = module.forward
        if (
            kinds.isdisjoint(_ATTENTIONS)
            or not isinstance(forward, MethodType)
            or not isinstance(forward.__func__, FunctionType)
        ):
            continue
        # Code outside transformers may use the same name for another rotation.
        ours = forward.__func__.__globals__.get("__name__", "").startswith("transformers.models.")
        if ours and _NAME in forward.__func__.__code__.co_names:
            own = MethodType(_with_own(forward.__func__, rows), module)
            module.forward = own  # type: ignore[method-assign]


def _with_own(forward: FunctionType, rows: Rows) -> FunctionType:
    """Copy of ``forward`` that calls the compiled rotation under transformers' name."""
    plain = forward.__globals__[_NAME]
    named = {**forward.__globals__, _NAME: partial(_rotated, rows, plain)}
    made = FunctionType(forward.__code__, named, forward.__name__, forward.__defaults__, forward.__closure__)
    made.__kwdefaults__ = forward.__kwdefaults__
    made.__module__ = __name__  # marks it as a fused form: ``known.replaced`` checks the defining module
    return made


def _rotated(
    rows: Rows,
    plain: Plain,
    query: Tensor,
    key: Tensor,
    cosine: Tensor,
    sine: Tensor,
    *args: Any,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    batch, _, length, size = query.shape
    whole = (
        cosine.shape == sine.shape
        and cosine.shape in ((1, length, size), (batch, length, size))
        and size % 2 == 0
    )
    if args or kwargs or not whole or not rows.serves(query, key, cosine, sine):
        return plain(query, key, cosine, sine, *args, **kwargs)
    return _Rotary.apply(query, cosine, sine, rows), _Rotary.apply(key, cosine, sine, rows)


class _Rotary(Function):
    """Rotate x (B, heads, T, D): ``x · cos + (−x₂, x₁) · sin`` (Su et al. 2021, eq. 34).

    x = (x₁, x₂) along D. Only x receives a gradient.
    """

    @staticmethod
    def forward(ctx: Any, x_BHTD: Tensor, cosine: Tensor, sine: Tensor, rows: Rows) -> Tensor:
        ctx.save_for_backward(cosine, sine)
        ctx.rows = rows
        return rows.rotate(x_BHTD, cosine, sine)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        return ctx.rows.rotate(grads[0], *ctx.saved_tensors, back=True), None, None, None
