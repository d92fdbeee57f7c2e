"""The weight of a quantized embedding as a tensor that is decoded only if its values are needed.

Subclasses of ``nn.Embedding`` read the dtype or device of their weight at every call (Gemma's, BART's), and
some modules look rows up in the weight of another one. Neither may decode the whole table, which can be half
of a model.
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
_NO_VALUES_CHANGED = {Tensor.requires_grad_}


class LazyWeight(Tensor):
    """A (rows, width) tensor in place of ``quantized``, decoded on demand.

    Metadata costs nothing, ``F.embedding`` decodes the rows that it looks up, and every other operation
    decodes the whole matrix. In-place changes raise :class:`QuantError`, since the codes would not change.
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
        name = str(getattr(func, "__name__", func))
        if (
            args
            and isinstance(args[0], LazyWeight)
            and (name == "__setitem__" or (name[-1] == "_" != name[-2:-1]))
        ):
            raise QuantError(f"a quantized table cannot be changed in place ({name}): leave it in 16 bits")
        decoded = tree_map_only(LazyWeight, lambda weight: weight._quantized.decode(), (args, kwargs or {}))
        return func(*decoded[0], **decoded[1])


def _is_look_up(
    ids: Any, weight: Any, padding_idx: Any = None, max_norm: Any = None, norm_type: Any = 2.0,
    scale_grad_by_freq: bool = False, sparse: bool = False,
) -> bool:  # fmt: skip
    """Whether ``F.embedding`` with these arguments returns rows of ``weight`` unchanged.

    Arguments that only scale the gradient do not matter.
    """
    return isinstance(weight, LazyWeight) and max_norm is None
