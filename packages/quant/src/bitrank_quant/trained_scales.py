"""Quantized layers whose group scales and minima are trained, while their codes stay as they are.

PEQA (Kim et al. 2023) trains the scales of groups, DWQ (mlx-lm) scales and minima. With w = code · scale +
minimum, the gradients of a group are Σ g · code and Σ g, where g is the gradient of a weight. Training
updates fp32 copies. The stored tensors stay in the layer until :func:`set_scales` writes trained ones,
rounded to the dtype of the format, so the bytes of the format do not change.

Not included: code books and 8-bit scales (double quantization), whose stored scales are codes themselves, and
layers of other libraries.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bitrank_quant.apply import keep_hooks, swap_weights
from bitrank_quant.backends.products import input_gradient, product
from bitrank_quant.backends.reference import QuantLinear, QuantWeight
from bitrank_quant.backends.registry import backend_of
from bitrank_quant.errors import QuantError
from bitrank_quant.formats.base import Format, Tensors, block_count
from bitrank_quant.formats.float import Float
from bitrank_quant.formats.integer import Affine, Int8Row, Symmetric
from bitrank_quant.kernels import Scratch
from bitrank_quant.packing import unpack_bits

Steps = Callable[[Any, Tensors], Tensor]


def _affine_steps(fmt: Affine | Symmetric, tensors: Tensors) -> Tensor:
    count = tensors["scale"].numel() * fmt.block
    return unpack_bits(tensors["codes"], fmt.bits, count).view(-1, fmt.block).float()


def _symmetric_steps(fmt: Symmetric, tensors: Tensors) -> Tensor:
    return _affine_steps(fmt, tensors) - fmt.zero


def _row_steps(_fmt: Int8Row, tensors: Tensors) -> Tensor:
    return tensors["codes"].float()


# The factor of each weight's scale, (groups, group size), by kind of format.
_STEPS: dict[type, Steps] = {Affine: _affine_steps, Symmetric: _symmetric_steps, Int8Row: _row_steps}
_TRAINED = ("scale", "minimum")  # stored tensors of a format that train, if the format has them


def why_no_scales(fmt: Format) -> str | None:
    """The reason why the scales of ``fmt`` cannot be trained; None if they can."""
    if isinstance(fmt, Float):
        return "a 16-bit or 32-bit matrix has no scales"
    if type(fmt) not in _STEPS:
        return "its values are no multiples of a scale that is stored as a number"
    if isinstance(fmt, Affine) and fmt.double_quant:
        return "its scales are stored as 8-bit codes, which would round the trained ones"
    if isinstance(fmt, Int8Row) and fmt.activations:
        return "its products round activations, which has no gradient"
    return None


def scale_numbers(fmt: Format, shape: tuple[int, int]) -> int:
    """Number of scales and minima of an (out, in) matrix that can be trained; 0 if there are none."""
    if why_no_scales(fmt) is not None:
        return 0
    per_group = 2 if isinstance(fmt, Affine) else 1
    return per_group * block_count(shape, fmt.block or shape[1])


class ScaledWeight(QuantWeight):
    """A :class:`QuantWeight` that decodes with fp32 copies of its scales, the parameters ``group_scales``."""

    group_scales: nn.ParameterDict

    @classmethod
    def over(cls, stored: QuantWeight) -> ScaledWeight:
        """The weight ``stored`` with trainable copies of its scales. Raises :class:`QuantError` if its format
        has none."""
        reason = why_no_scales(stored.fmt)
        if reason is not None:
            raise QuantError(
                f"the scales of {stored.fmt} cannot be trained: {reason}; give int4-g64 or another affine, "
                "symmetric or int8 format"
            )
        tensors = stored.tensors
        made = cls.of(tensors, stored.fmt, stored.shape, stored.compute_dtype)
        assert isinstance(made, ScaledWeight)
        copies = {
            name: nn.Parameter(tensors[name].to(torch.float32, copy=True))
            for name in _TRAINED
            if name in tensors
        }
        made.group_scales = nn.ParameterDict(copies)
        return made

    @property
    def tensors(self) -> Tensors:
        return {**super().tensors, **{name: p.detach() for name, p in self.group_scales.items()}}

    def decode(self, dtype: torch.dtype | None = None, scratch: Scratch = None) -> Tensor:
        return self.fmt.decode(self.tensors, self.shape, dtype or self.compute_dtype, scratch)

    def scale_gradients(self, grad_NO: Tensor, input_NI: Tensor) -> Tensors:
        """Gradients of ``group_scales`` in fp32, of the product y (N, O) = x (N, I) Wᵀ.

        Σ over a group of ∂L/∂w · code for a scale, and of ∂L/∂w for a minimum.
        """
        found: dict[str, list[Tensor]] = {name: [] for name in self.group_scales}
        for part in self.parts(input_NI.dtype):
            rows = self.tensors
            if part.stop - part.start < self.shape[0]:
                rows = self.fmt.rows(rows, part, self.shape[0])
            steps_GB = _STEPS[type(self.fmt)](self.fmt, rows)
            weight_OI = (grad_NO[:, part].T @ input_NI).float()
            padded_OI = F.pad(weight_OI, (0, -weight_OI.shape[1] % steps_GB.shape[1]))
            weight_GB = padded_OI.reshape(steps_GB.shape)
            for name, sums in found.items():
                factors_GB = weight_GB if name == "minimum" else weight_GB * steps_GB
                sums.append(factors_GB.sum(dim=1))
        return {name: torch.cat(sums) for name, sums in found.items()}


class ScaledLinear(QuantLinear):
    """A linear layer over a :class:`ScaledWeight`: input and scales have gradients, codes are fixed."""

    quantized: ScaledWeight

    def forward(self, input: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(input.dtype)
        rows_NI = input.reshape(-1, self.in_features)
        rows_NO: Tensor = _ScaledProduct.apply(
            rows_NI, self.quantized, bias, *self.quantized.group_scales.values()
        )
        return rows_NO.view(*input.shape[:-1], self.out_features)


class _ScaledProduct(torch.autograd.Function):
    """``y = x Wᵀ + b`` with W decoded in both passes. The input is saved for the gradients of the scales."""

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: ScaledWeight, bias: Tensor | None, *scales: Tensor
    ) -> Tensor:
        ctx.weight = weight
        ctx.save_for_backward(input)
        return product(input, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (input_NI,) = ctx.saved_tensors
        back_NI = input_gradient(grads[0], ctx.weight) if ctx.needs_input_grad[0] else None
        return back_NI, None, None, *ctx.weight.scale_gradients(grads[0], input_NI).values()


def train_scales(model: nn.Module, names: Sequence[str]) -> dict[str, torch.dtype]:
    """Make scales and minima of the layers ``names`` trainable, in place; 16-bit layers stay frozen.

    Returns the dtype in which the format stores each new parameter, by the parameter's name. A layer with a
    method ``as_quantized`` stands for a quantized layer (forecasts, on the ``meta`` device). Raises
    :class:`QuantError`, before the model changes, for a format without trainable scales, a layer of another
    library, and if no layer has scales.
    """
    scaled: dict[str, ScaledLinear] = {}
    for name in names:
        layer: Any = model.get_submodule(name)
        layer = layer.as_quantized() if hasattr(layer, "as_quantized") else layer
        if isinstance(layer, QuantLinear):
            if isinstance(layer.quantized.fmt, Float):
                continue
            try:
                weight = ScaledWeight.over(layer.quantized)
            except QuantError as error:
                raise QuantError(f"{name}: {error}") from error
            scaled[name] = keep_hooks(layer, ScaledLinear(weight, layer.bias))  # type: ignore[assignment]
        elif (backend := backend_of(layer)) is not None:
            raise QuantError(
                f"{name} is stored by {backend.name}, whose scales cannot be trained here; give int4-g64 or "
                "another format of the backend torch"
            )
    if not scaled:
        raise QuantError("no matrix has scales to train; give a low-bit format such as int4-g64")
    swap_weights(model, scaled)
    dtypes: dict[str, torch.dtype] = {}
    for name, scaled_layer in scaled.items():
        weight = scaled_layer.quantized
        for tensor in weight.group_scales:
            dtypes[f"{name}.quantized.group_scales.{tensor}"] = weight.get_buffer(tensor).dtype
    return dtypes


@torch.no_grad()
def set_scales(model: nn.Module, scales: Mapping[str, Tensor]) -> None:
    """Write ``scales``, ``{matrix.scale or matrix.minimum: values}``, into quantized layers, in place.

    Values are rounded to the dtype that the format stores. Raises :class:`QuantError` for a matrix that the
    model does not store with such scales.
    """
    for key, values in scales.items():
        name, _, tensor = key.rpartition(".")
        try:
            layer: Any = model.get_submodule(name)
        except AttributeError:
            layer = None
        stored = layer.quantized._buffers.get(tensor) if isinstance(layer, QuantLinear) else None
        if tensor not in _TRAINED or stored is None or stored.shape != values.shape:
            raise QuantError(
                f"the trained scales contain {key} of shape {tuple(values.shape)}, which this model does not "
                "store; give the base and the formats that they were trained with"
            )
        stored.copy_(values)
