"""How the matrix of a linear layer is decoded into its compute dtype, whoever stores it.

For those who multiply by it themselves: a fused product decodes in the forward and in the backward pass and keeps nothing. What our
kernels decode on a CPU, and what lies there in 16 bits and is multiplied in 32, goes into one room for each dtype, one matrix after
another: made anew each, thousands a second, they would leave holes between what autograd keeps, and the process would grow. Autograd
does not see the room change, so nothing may be saved of it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from bitrank_quant import kernels
from bitrank_quant.backends.reference import QuantEmbedding, QuantLinear
from bitrank_quant.errors import QuantError
from bitrank_quant.formats.codebook import DYNAMIC_8BIT
from bitrank_quant.formats.integer import Int8Row
from bitrank_quant.understood import why_left

Decode = Callable[[], Tensor]
# Weights of bitsandbytes and quanto have every look at them pass through Python (`__torch_function__`), 2 µs each, but in here.
_unwatched = torch._C.DisableTorchFunctionSubclass
_scratch_buffers: dict[torch.dtype, dict[tuple[int, ...], Tensor]] = {}
"""One memory for each dtype, whole under (), and the views of it by shape: models have few, and to make one anew takes 3 µs."""


def _scratch(shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """The room that this process has for one decoded matrix, as large as the largest there was."""
    views = _scratch_buffers.get(dtype)
    view = None if views is None else views.get(shape)
    return _view(shape, dtype) if view is None else view


def _view(shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    count = shape[0] * shape[1]
    if dtype not in _scratch_buffers or _scratch_buffers[dtype][()].numel() < count:
        _scratch_buffers[dtype] = {
            (): torch.empty(count, dtype=dtype)
        }  # without the views of a smaller one, which would keep it
    views = _scratch_buffers[dtype]
    views[shape] = views[()][:count].view(shape)
    return views[shape]


def decoder(layer: nn.Module) -> Decode | None:
    """A function that gives the (out, in) matrix of ``layer`` in its compute dtype, good until the next matrix is decoded by one.

    None when the product of ``layer`` is not that of one decoded matrix: LLM.int8() rounds activations too, and layers of a kind
    unknown here may do anything. Where it is that at times only, what is given has a method ``applies`` that tells (:class:`InTraining`).
    """
    kind = type(layer).__name__
    if isinstance(layer, QuantLinear):
        rounds_activations = isinstance(layer.quantized.fmt, Int8Row) and layer.quantized.fmt.activations
        return None if rounds_activations else partial(layer.quantized.decode, scratch=_scratch)
    if type(layer) is nn.Linear:
        return partial(_weight, layer)
    if kind == "Linear4bit":
        return partial(_bitsandbytes_4bit, layer, _scratch)
    if kind == "Linear8bitLt":
        return InTraining(layer) if hasattr(layer, "compute_dtype") else None
    return partial(_quanto, layer, _scratch) if kind == "QLinear" else None


class InTraining:
    """The matrix of bitsandbytes' LLM.int8(), which on a CPU rounds activations in evaluations alone: while it trains it multiplies by
    this very matrix, which it makes in two passes into new memory."""

    def __init__(self, layer: Any) -> None:
        self.layer = layer

    def applies(self) -> bool:
        codes_OI = _held_8bit(self.layer).CB
        return self.layer.training and codes_OI is not None and codes_OI.is_cpu

    def __call__(self) -> Tensor:
        held, dtype = _held_8bit(self.layer), self.layer.compute_dtype
        scale_O = held.SCB.mul(1.0 / 127.0)
        made = kernels.int8_rows(held.CB, scale_O, dtype, _scratch)
        return held.CB.to(dtype).mul_(scale_O[:, None]) if made is None else made


def stored_weight(layer: nn.Module) -> Tensor:
    """The (out, in) matrix that ``layer`` holds, in its compute dtype, whoever stores it; LLM.int8() rounds activations besides.

    Raises :class:`QuantError` for a layer of a kind unknown here.
    """
    if isinstance(layer, (QuantLinear, QuantEmbedding)):
        return layer.quantized.decode()
    if type(layer).__name__ == "Linear8bitLt":
        return _bitsandbytes_8bit(layer)
    if isinstance(layer, Conv1D):
        return layer.weight.detach().T
    if type(layer).__name__ == "Linear4bit":
        return _bitsandbytes_4bit(layer).detach()
    if type(layer).__name__ == "QLinear":
        return _quanto(layer).detach()
    if isinstance(layer, (nn.Linear, nn.Embedding)) and why_left(layer) is None:
        return layer.weight.detach()
    raise QuantError(
        f"cannot tell the weight of a {type(layer).__name__}; expected a linear layer of torch, bitsandbytes or quanto"
    )


def _bitsandbytes_8bit(layer: Any) -> Tensor:
    held = _held_8bit(layer)
    made: Tensor = held.CB.float() * held.SCB.float()[:, None] / 127
    return made


def _held_8bit(layer: Any) -> Any:
    """Codes and scales lie with the weight until bitsandbytes' first product, with the state of its products after it."""
    weight = layer._parameters["weight"]
    return weight if getattr(weight, "SCB", None) is not None else layer.state


def _weight(layer: nn.Linear) -> Tensor:
    return layer.weight


def _bitsandbytes_4bit(layer: Any, scratch: kernels.Scratch = None) -> Tensor:
    weight, dtype = layer._parameters["weight"], layer.compute_dtype
    with _unwatched():
        codes: Tensor = weight.data
    made: Tensor | None = _bitsandbytes_on_cpu(codes, weight.quant_state, dtype, scratch)
    if made is None:
        from bitsandbytes.functional import dequantize_4bit

        made = dequantize_4bit(codes, weight.quant_state)
    return made if made.dtype == dtype else made.to(dtype)


def _bitsandbytes_on_cpu(
    codes: Tensor, state: Any, dtype: torch.dtype, scratch: kernels.Scratch = None
) -> Tensor | None:  # fmt: skip
    """The matrix in ``dtype`` by our kernels, which run on torch's threads: bitsandbytes brings a second
    pool, and the two wait for each other's cores.

    None where they cannot read it: its blocks run on from row to row, ours begin anew with each.
    """
    shape, block = state.shape, state.blocksize
    if len(shape) != 2 or shape[1] % block:
        return None
    if not state.nested:
        return kernels.codebook(codes, state.code, state.absmax, block, shape, dtype, scratch)
    scales = state.absmax, DYNAMIC_8BIT, state.state2.absmax, state.offset
    return kernels.nested_codebook(codes, state.code, scales, block, shape, dtype, scratch)


def _quanto(layer: Any, scratch: kernels.Scratch = None) -> Tensor:
    weight = layer._parameters["weight"]
    if (fast := _quanto_on_cpu(weight, scratch)) is not None:
        return fast
    made: Tensor = weight.dequantize()
    return made


def _quanto_on_cpu(weight: Any, scratch: kernels.Scratch) -> Tensor | None:
    """The matrix by our kernels when ``weight`` is stored in one of the two layouts that they read."""
    kind, data = type(weight).__name__, weight._data
    with _unwatched():
        shape, dtype = weight.shape, weight.dtype
    if weight.axis != 0 or len(shape) != 2:
        return None
    if kind == "WeightQBytesTensor":
        return kernels.int8_rows(data, weight._scale, dtype, scratch)
    if kind == "WeightQBitsTensor":
        return kernels.quanto(data._data, weight._scale, weight._shift, data.bits, shape, dtype, scratch)
    return None
