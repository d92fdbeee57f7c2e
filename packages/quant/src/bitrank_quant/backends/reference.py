"""Backend "torch": every format on every device in plain PyTorch, the reference for faster backends.

The forward pass decodes the matrix, multiplies and frees it; the backward pass decodes it again. Only codes
and scales are stored, so memory is :func:`~bitrank_quant.footprint.stored_bytes` plus one decoded matrix at a
time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from bitrank_quant.backends.base import Backend, Decode, computes_as
from bitrank_quant.backends.products import DecodedLinear, LlmInt8
from bitrank_quant.backends.scratch import scratch
from bitrank_quant.formats.base import Format, Tensors, row_codes
from bitrank_quant.formats.codebook import Codebook, encode_dynamic_8bit
from bitrank_quant.formats.float import Float
from bitrank_quant.formats.integer import Affine, Int8Row
from bitrank_quant.kernels import Scratch
from bitrank_quant.lazy import LazyWeight
from bitrank_quant.packing import end_on_bytes

_PART = 2**20  # weights encoded at a time
# Weights decoded at a time for a product on a CPU: 4 MiB in fp32, which stay in its cache until multiplied.
_PRODUCT = 2**20


def encode_in_parts(fmt: Format, weight_OI: Tensor) -> Tensors:
    """``fmt.encode`` some rows at a time, so that a large table is never in memory in fp32 as a whole.

    Nested scales span rows, so they are encoded after all rows.
    """
    if isinstance(fmt, Codebook) and fmt.double_quant:
        plain = encode_in_parts(replace(fmt, double_quant=False), weight_OI)
        return {"codes": plain["codes"], **encode_dynamic_8bit(plain["absmax"])}
    rows = max(64, _PART // weight_OI.shape[1] // 64 * 64)  # 64 rows end on a whole byte at any bit width
    if isinstance(fmt, Affine):
        return fmt.encode_parts(weight_OI.split(rows))
    if len(weight_OI) <= rows:
        return fmt.encode(weight_OI)
    *full, last_OI = weight_OI.split(rows)
    ending = fmt.encode(last_OI)  # its last row may end within a byte, so its sizes follow from no other part
    whole: Tensors = {}
    for number, part_OI in enumerate(full):
        for name, part in fmt.encode(part_OI).items():
            size = len(part)  # the same in each full part
            if number == 0:
                whole[name] = part.new_empty((size * len(full) + len(ending[name]), *part.shape[1:]))
            whole[name][size * number : size * (number + 1)] = part
    for name, part in ending.items():
        whole[name][len(whole[name]) - len(part) :] = part
    return whole


class QuantWeight(nn.Module):
    """Codes and scales of one (out, in) matrix as buffers; an embedding and the head tied to it share one."""

    def __init__(self, weight_OI: Tensor, fmt: Format, compute_dtype: torch.dtype) -> None:
        super().__init__()
        self.fmt, self.shape, self.compute_dtype = (
            fmt,
            (weight_OI.shape[0], weight_OI.shape[1]),
            compute_dtype,
        )
        for name, tensor in encode_in_parts(fmt, weight_OI).items():
            self.register_buffer(name, tensor)

    @classmethod
    def of(
        cls, tensors: Tensors, fmt: Format, shape: tuple[int, int], compute_dtype: torch.dtype
    ) -> QuantWeight:
        """Construct from encoded ``tensors`` of a matrix of ``shape`` (out, in)."""
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        made.fmt, made.shape, made.compute_dtype = fmt, shape, compute_dtype
        for name, tensor in tensors.items():
            made.register_buffer(name, tensor)
        return made

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantWeight:
        """Move codes and scales, and keep their dtypes: a cast of the model would round what is stored."""
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, stored in before.items():
            moved = self._buffers[name]
            if stored is not None and moved is not None and moved.dtype != stored.dtype:
                self._buffers[name] = stored.to(moved.device)
        return self

    @property
    def tensors(self) -> Tensors:
        # Read at every product: `named_buffers` walks the module tree and takes longer than some decodings.
        return {name: tensor for name, tensor in self._buffers.items() if tensor is not None}

    def decode(self, dtype: torch.dtype | None = None, scratch: Scratch = None) -> Tensor:
        """The (out, in) matrix in ``dtype`` (default: the compute dtype).

        ``scratch`` allocates the result, as in :meth:`Format.decode`.
        """
        buffers: Any = self._buffers  # not `tensors`, which would copy the dictionary at every product
        return self.fmt.decode(buffers, self.shape, dtype or self.compute_dtype, scratch)

    def parts(self, dtype: torch.dtype) -> list[slice]:
        """Row ranges to decode into ``dtype`` one after the other.

        Several ranges for a large matrix on a CPU; a single one on other devices, if no decoding is needed,
        or if rows end within a byte.
        """
        rows, step = self.shape[0], max(1, _PRODUCT // self.shape[1])
        as_it_is = isinstance(self.fmt, Float) and self.fmt.dtype == dtype
        on_bytes = end_on_bytes(row_codes(self.fmt, self.shape[1]), self.fmt.bits)
        codes = next(iter(self.tensors.values()))
        if as_it_is or codes.device.type != "cpu" or not on_bytes:
            step = rows
        return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]

    def decode_part(self, part: slice, dtype: torch.dtype) -> Tensor:
        """A contiguous range of rows of the matrix in ``dtype``."""
        if part.stop - part.start == self.shape[0]:
            return self.decode(dtype)
        rows = self.fmt.rows(self.tensors, part, self.shape[0])
        return self.fmt.decode(rows, (part.stop - part.start, self.shape[1]), dtype)

    def decode_rows(self, ids: Tensor) -> Tensor:
        """Rows ``ids`` (any shape) → (*ids.shape, in)."""
        flat = ids.reshape(-1)
        rows = self.fmt.rows(self.tensors, flat, self.shape[0])
        return self.fmt.decode(rows, (flat.numel(), self.shape[1]), self.compute_dtype).view(
            *ids.shape, self.shape[1]
        )

    def extra_repr(self) -> str:
        return f"{self.fmt}, shape={self.shape}"


class QuantLinear(nn.Linear):
    """A frozen linear layer over a :class:`QuantWeight`, an ``nn.Linear`` so that PEFT wraps it as one."""

    def __init__(self, quantized: QuantWeight, bias: Tensor | None) -> None:
        nn.Module.__init__(self)
        self.out_features, self.in_features = quantized.shape
        self.quantized = quantized
        self.register_parameter(
            "bias", None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=False)
        )

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The (out, in) matrix, decoded at each use of its values (see :mod:`~bitrank_quant.lazy`).

        A parameter starts from ``stored_weight(layer).clone()`` instead.
        """
        return LazyWeight(self.quantized)

    def forward(self, input: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(input.dtype)
        llm_int8 = _rounds_activations(self.quantized.fmt)
        # Flatten to 2-D before the function instead of inside: a view returned by a custom function could not
        # be changed in place, as PEFT does.
        rows_NI = input.reshape(-1, self.in_features)
        rows_NO = (LlmInt8 if llm_int8 else DecodedLinear).apply(rows_NI, self.quantized, bias)
        return rows_NO.view(*input.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        return f"{self.quantized.fmt}, in_features={self.in_features}, out_features={self.out_features}"


class QuantEmbedding(nn.Embedding):
    """A frozen embedding over a :class:`QuantWeight` that decodes only the rows that are looked up.

    For a subclass of ``nn.Embedding`` see :meth:`instead_of`.
    """

    replaces: type[nn.Embedding] = nn.Embedding  # the class of the replaced module

    def __init__(self, quantized: QuantWeight, padding_idx: int | None) -> None:
        nn.Module.__init__(self)
        self.num_embeddings, self.embedding_dim = quantized.shape
        self.padding_idx, self.max_norm, self.norm_type = padding_idx, None, 2.0
        self.scale_grad_by_freq, self.sparse = False, False
        self.quantized = quantized

    @staticmethod
    def instead_of(module: nn.Embedding, quantized: QuantWeight) -> QuantEmbedding:
        """An embedding equivalent to ``module``, over ``quantized`` instead of its weight.

        It keeps attributes, buffers, children, hooks, and the forward pass of its class. A subclass reaches
        the quantized look-up by ``super().forward``, so its own treatment of ids and rows still applies.
        """
        kind: Any = kind_replaced(module)
        made: Any = _without_weight(module, _table_class(kind))
        made._modules.pop("quantized", None)
        made.quantized = quantized
        return made  # type: ignore[no-any-return]

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The table, decoded only if its values are needed (see :mod:`~bitrank_quant.lazy`)."""
        return LazyWeight(self.quantized)

    def forward(self, input: Tensor) -> Tensor:
        return self.quantized.decode_rows(input)

    def __reduce__(self) -> tuple[Any, ...]:
        # Classes created at run time cannot be found by name when unpickling.
        return _empty_table, (self.replaces,), self.__dict__


def kind_replaced(module: nn.Embedding) -> type[nn.Embedding]:
    """The class of ``module``, or the class that it replaced if it is quantized."""
    return module.replaces if isinstance(module, QuantEmbedding) else type(module)


@cache
def _table_class(kind: Any) -> type[QuantEmbedding]:
    """A subclass of ``kind`` with the quantized look-up as its ``super().forward``, and a lazy ``weight``."""
    if kind is nn.Embedding:
        return QuantEmbedding
    return type(f"Quant{kind.__name__}", (kind, QuantEmbedding), {"replaces": kind, "__module__": __name__})


def _empty_table(kind: Any) -> QuantEmbedding:
    made = _table_class(kind)
    return made.__new__(made)


def _without_weight(module: nn.Module, kind: type[nn.Module]) -> nn.Module:
    """A shallow copy of ``module`` as a ``kind`` without the parameter ``weight``.

    Both share the hook dictionaries, so that a handle removes a hook from both.
    """
    made = kind.__new__(kind)
    made.__dict__.update(module.__dict__)
    for name in ("_parameters", "_buffers", "_modules"):
        made.__dict__[name] = dict(module.__dict__[name])
    made._parameters.pop("weight", None)
    return made


def make(linear: nn.Linear, fmt: Format, compute_dtype: torch.dtype) -> nn.Module:
    """A frozen :class:`QuantLinear`."""
    return QuantLinear(QuantWeight(linear.weight, fmt, compute_dtype), linear.bias)


def make_from_codes(
    tensors: Tensors, fmt: Format, shape: tuple[int, int], bias: Tensor | None, compute_dtype: torch.dtype
) -> nn.Module:
    """A frozen :class:`QuantLinear` over ``tensors``."""
    return QuantLinear(QuantWeight.of(tensors, fmt, shape, compute_dtype), bias)


def owns(layer: nn.Module) -> bool:
    """Whether ``layer`` is a linear layer or an embedding over a :class:`QuantWeight`."""
    return computes_as(layer, QuantLinear) or isinstance(layer, QuantEmbedding)


def decode(layer: Any) -> Decode | None:
    """The decoder of a linear ``layer``; None if its product also quantizes activations."""
    plain = isinstance(layer, QuantLinear) and not _rounds_activations(layer.quantized.fmt)
    return partial(layer.quantized.decode, scratch=scratch) if plain else None


def stored_weight(layer: Any) -> Tensor:
    """The (out, in) matrix of ``layer``."""
    weight: Tensor = layer.quantized.decode()
    return weight


def _rounds_activations(fmt: Format) -> bool:
    return isinstance(fmt, Int8Row) and fmt.activations


BACKEND = Backend(
    "torch",
    "every format in plain PyTorch: the reference",
    "torch",
    ("cpu", "cuda", "mps", "xpu"),
    lambda _fmt: True,
    make,
    owns,
    stored_weight,
    decode,
    make_from_codes=make_from_codes,
)
