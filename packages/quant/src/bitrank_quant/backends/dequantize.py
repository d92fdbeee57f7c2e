"""Decode the matrix of a linear layer into its compute dtype, whichever backend stores it.

Used by callers that multiply by the matrix themselves: a fused product decodes it in the forward and in the
backward pass and saves nothing. Matrices decoded by the compiled kernels, and 16-bit matrices multiplied in
32 bits on a CPU, share one buffer (:mod:`~bitrank_quant.backends.scratch`).
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from bitrank_quant.backends.base import Decode
from bitrank_quant.backends.registry import BACKENDS, backend_of
from bitrank_quant.errors import QuantError
from bitrank_quant.replaceable import why_not_replaceable


def decoder(layer: nn.Module) -> Decode | None:
    """A function that returns the (out, in) matrix of ``layer`` in its compute dtype.

    The result is valid until the next matrix is decoded. None if ``layer`` does not multiply by one decoded
    matrix: LLM.int8() quantizes activations too, and unknown layers may compute anything. If it does so at
    times only, the function has a method ``applies`` that returns whether it does now
    (:class:`~bitrank_quant.backends.bitsandbytes.Int8InTraining`).
    """
    if type(layer) is nn.Linear:
        return partial(_weight, layer)
    backend = backend_of(layer)
    return None if backend is None else backend.decode(layer)


def stored_weight(layer: nn.Module) -> Tensor:
    """The (out, in) matrix stored in ``layer``, in its compute dtype, for every backend.

    ``nn.Parameter(stored_weight(layer).clone())`` is a parameter that starts from it; without ``clone``, one
    of a layer in 16 bits shares its memory. An LLM.int8() layer quantizes activations besides. Raises
    :class:`QuantError` for an unknown kind of layer.
    """
    backend = backend_of(layer)
    if backend is not None:
        return backend.stored_weight(layer)
    if isinstance(layer, Conv1D):
        return layer.weight.detach().T
    if isinstance(layer, (nn.Linear, nn.Embedding)) and why_not_replaceable(layer) is None:
        return layer.weight.detach()
    raise QuantError(
        f"cannot tell the weight of a {type(layer).__name__}; expected an unquantized linear layer or "
        f"embedding, or a layer of {', '.join(BACKENDS)}"
    )


def _weight(layer: nn.Linear) -> Tensor:
    return layer.weight
