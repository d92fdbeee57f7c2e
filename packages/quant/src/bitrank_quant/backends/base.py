"""The interface of a backend: how a library stores a quantized linear layer and multiplies by it.

A backend is one file that defines one :class:`Backend`; :data:`~bitrank_quant.backends.registry.BACKENDS`
lists them. No other module uses the classes of a library.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bitrank_quant.formats.base import Format, Tensors

Decode = Callable[[], Tensor]
MakeLinear = Callable[[nn.Linear, Format, torch.dtype], nn.Module]
Shape = tuple[int, int]
MakeFromCodes = Callable[[Tensors, Format, Shape, Tensor | None, torch.dtype], nn.Module]


def _never_decoded(_layer: Any) -> None: ...


def _always_fits(_fmt: Format, _shape: Shape) -> None: ...


def _no_flag(_fmt: Format) -> None: ...


def _reference_bytes(fmt: Format, shape: Shape, _dtype: torch.dtype) -> int:
    return fmt.nbytes(shape)


def _no_hidden_tensors(_layer: Any) -> Iterator[Tensor]:
    return iter(())


@dataclass(frozen=True)
class Backend:
    """A library that stores quantized linear layers. Matrices are (out, in).

    ``library`` is the importable package that the backend needs. ``make`` converts a linear layer, whose
    weights are on their final device, to a frozen quantized one. ``owns`` recognises the layers that ``make``
    returns; the functions below it are called with such layers only. The defaults of the optional fields suit
    a layer that stores exactly the tensors that its format encodes.
    """

    name: str
    about: str
    library: str
    devices: tuple[str, ...]
    serves: Callable[[Format], bool]
    make: MakeLinear
    owns: Callable[[nn.Module], bool]
    stored_weight: Callable[[Any], Tensor]
    """The (out, in) matrix that the layer multiplies by, in its compute dtype."""
    decode: Callable[[Any], Decode | None] = _never_decoded
    """See :func:`~bitrank_quant.backends.dequantize.decoder`; None: the layer does not decode one matrix."""
    nbytes: Callable[[Format, Shape, torch.dtype], int] = _reference_bytes
    """Stored bytes of a matrix of some shape and compute dtype, without building it."""
    hidden_tensors: Callable[[Any], Iterator[Tensor]] = _no_hidden_tensors
    """Tensors of a layer that are neither parameters, buffers, nor parts of those."""
    misfit: Callable[[Format, Shape], str | None] = _always_fits
    """The reason why a matrix of some shape cannot be stored in a supported format; None if it can."""
    make_from_codes: MakeFromCodes | None = None
    """A frozen layer from the tensors that a format stores of a matrix, its shape (out, in), the layer's bias
    and the compute dtype; None: the library encodes weights itself, by rounding."""
    codes_misfit: Callable[[Format, Shape], str | None] = _always_fits
    """The reason why ``make_from_codes`` cannot take a matrix of some shape; None if it can."""
    peft_flag: Callable[[Format], str | None] = _no_flag
    """The attribute of a model by which PEFT chooses its adapter class for these layers."""

    def missing(self, device: str) -> str | None:
        """The reason why this backend cannot run on ``device`` here; None if it can."""
        if importlib.util.find_spec(self.library) is None:
            return f"the package {self.library} is not installed"
        return None if device in self.devices else f"{self.name} does not run on {device}"


def computes_as(layer: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether ``layer`` is an instance of ``kind`` with the forward pass of ``kind``."""
    return isinstance(layer, kind) and type(layer).forward is kind.forward


def frozen(bias: Tensor | None) -> nn.Parameter | None:
    """A copy of ``bias`` that is not trained."""
    return None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=False)
