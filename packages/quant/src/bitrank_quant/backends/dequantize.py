"""How the matrix of a linear layer is decoded into its compute dtype, whichever backend stores it.

For those who multiply by it themselves: a fused product decodes in the forward and in the backward pass and
keeps nothing. What our kernels decode on a CPU, and what lies there in 16 bits and is multiplied in 32, goes
into one buffer (:mod:`~bitrank_quant.backends.scratch`).
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from bitrank_quant.backends.base import Decode
from bitrank_quant.backends.registry import BACKENDS, backend_of
from bitrank_quant.errors import QuantError
from bitrank_quant.understood import why_left


def decoder(layer: nn.Module) -> Decode | None:
    """A function that gives the (out, in) matrix of ``layer`` in its compute dtype, good until the next
    matrix is decoded by one.

    None when the product of ``layer`` is not that of one decoded matrix: LLM.int8() rounds activations too,
    and layers of a kind unknown here may do anything. Where it is that at times only, the function has a
    method ``applies`` that says when (:class:`~bitrank_quant.backends.bitsandbytes.Int8InTraining`).
    """
    if type(layer) is nn.Linear:
        return partial(_weight, layer)
    backend = backend_of(layer)
    return None if backend is None else backend.decode(layer)


def stored_weight(layer: nn.Module) -> Tensor:
    """The (out, in) matrix that ``layer`` holds, in its compute dtype, whoever stores it; LLM.int8() rounds
    activations besides.

    Raises :class:`QuantError` for a layer of a kind unknown here.
    """
    backend = backend_of(layer)
    if backend is not None:
        return backend.stored_weight(layer)
    if isinstance(layer, Conv1D):
        return layer.weight.detach().T
    if isinstance(layer, (nn.Linear, nn.Embedding)) and why_left(layer) is None:
        return layer.weight.detach()
    raise QuantError(
        f"cannot tell the weight of a {type(layer).__name__}; expected an unquantized linear layer or embedding, or a "
        f"layer of {', '.join(BACKENDS)}"
    )


def _weight(layer: nn.Linear) -> Tensor:
    return layer.weight
