"""The weight of a quantized module as a tensor that is decoded only if its values are needed.

Subclasses of ``nn.Embedding`` read the dtype or device of their weight at every call (Gemma's, BART's), as T5
does of a linear layer's, and some modules look rows up in the weight of another one. None of them may decode
the whole matrix, which can be half of a model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._pytree import tree_map_only

from bitrank_quant.errors import QuantError

if TYPE_CHECKING:
    from bitrank_quant.backends.reference import QuantWeight

_no_torch_function = torch._C.DisableTorchFunctionSubclass
_ATTRIBUTES = ("dtype", "device", "shape", "ndim", "is_meta", "requires_grad", "layout")
_METADATA = {
    *(getattr(Tensor, name).__get__ for name in _ATTRIBUTES),
    *(Tensor.size, Tensor.dim, Tensor.numel, Tensor.is_floating_point, Tensor.element_size, Tensor.__len__),
}
_READ_DATA, _SET_DATA, _SET_REQUIRES_GRAD = (
    getattr(getattr(Tensor, name), method)
    for name, method in (("data", "__get__"), ("data", "__set__"), ("requires_grad", "__set__"))
)
_NO_VALUES_CHANGED = {Tensor.requires_grad_, _SET_REQUIRES_GRAD}
# Changes in place whose names do not end with one underscore.
_CHANGES = {
    "__setitem__",
    *(f"__i{name}__" for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul")),
    *(f"__i{name}__" for name in ("and", "or", "xor", "lshift", "rshift")),
}


class LazyWeight(Tensor):
    """A (rows, width) tensor in place of ``quantized``, decoded on demand.

    Metadata costs nothing, ``F.embedding`` decodes the rows that it looks up, and every other operation
    decodes the whole matrix. In-place changes, also of ``data``, raise :class:`QuantError`: they would change
    a decoded copy and not the codes, as PEFT's ``merge_and_unload`` does, which then drops the adapter.

    It is no start of a parameter: ``nn.Parameter`` needs the values, which
    ``nn.Parameter(stored_weight(layer).clone())`` has (without ``clone``, 16-bit layers share theirs).
    """

    _quantized: QuantWeight
    # transformers' initialization of a loaded model skips such tensors, whose values are those of the codes.
    _is_hf_initialized = True

    @staticmethod
    def __new__(cls: type[LazyWeight], quantized: QuantWeight) -> LazyWeight:
        device = next(iter(quantized.tensors.values())).device
        made: LazyWeight = Tensor._make_wrapper_subclass(
            cls, quantized.shape, dtype=quantized.compute_dtype, device=device, requires_grad=False
        )
        made._quantized = quantized
        return made

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        named = kwargs or {}
        if func == _READ_DATA:
            return args[0]  # not a decoded copy, whose changes would be lost
        if func in _METADATA or func in _NO_VALUES_CHANGED:
            with _no_torch_function():
                return func(*args, **named)
        if func is F.embedding and _is_look_up(*args, **named):
            return args[1]._quantized.decode_rows(args[0])
        return cls.__torch_dispatch__(func, types, args, named)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if args and isinstance(args[0], LazyWeight) and _changes(func):
            raise QuantError(
                f"a quantized matrix ({args[0]._quantized.fmt}) cannot be changed in place "
                f"({getattr(func, '__name__', func)}): leave it in 16 bits, and resize embeddings before "
                "quantizing. To merge an adapter into its base use `bitrank export --to merged` (16 "
                "bits) or `--to quantized`"
            )
        decoded = tree_map_only(LazyWeight, lambda weight: weight._quantized.decode(), (args, kwargs or {}))
        return func(*decoded[0], **decoded[1])


def _changes(func: Callable[..., Any]) -> bool:
    """Whether ``func`` changes its first argument in place."""
    name = str(getattr(func, "__name__", func))
    return func == _SET_DATA or name in _CHANGES or name[-1] == "_" != name[-2:-1]


def _is_look_up(
    ids: Any, weight: Any, padding_idx: Any = None, max_norm: Any = None, norm_type: Any = 2.0,
    scale_grad_by_freq: bool = False, sparse: bool = False,
) -> bool:  # fmt: skip
    """Whether ``F.embedding`` with these arguments returns rows of ``weight`` unchanged.

    Arguments that only scale the gradient do not matter.
    """
    return isinstance(weight, LazyWeight) and max_norm is None
