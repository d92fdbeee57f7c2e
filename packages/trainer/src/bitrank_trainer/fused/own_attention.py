"""Detection of models whose attention differs from the plain softmax formula.

Models differ by terms added to the scores (T5's position bias), by functions of the scores (Gemma 2 caps
them) and by terms in the softmax (attention sinks). They pass these as keywords or keep them in the module.
An unknown keyword with a value other than None or False selects the model's own ``eager_attention_forward``.
Without such a keyword, that function is evaluated once per module on small random inputs; the formula of
:mod:`~bitrank_trainer.fused.attention` is used only if both results agree. A :class:`OwnAttention` warning,
once per message, reports the model's own attention, because it is slower and saves more for the backward
pass.
"""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from bitrank_trainer.errors import TrainError

Attend = Callable[..., Any]
_EAGER = "eager_attention_forward"
# Keywords that eager attentions of transformers receive and ignore: the mask already contains the
# information, or another implementation uses it.
_UNREAD = frozenset(
    (
        "position_ids",
        "cache_position",
        "is_causal",
        "sliding_window",
        "use_cache",
        "num_items_in_batch",
        "return_dict",
        "output_hidden_states",
        "cu_seq_lens_q",
        "cu_seq_lens_k",
        "max_length_q",
        "max_length_k",
    )
)
_TOLERANCE = 1e-5
_QUERIES, _KEYS, _WIDTH = 3, 5, 8  # sizes of the random test inputs
_tried: WeakKeyDictionary[nn.Module, bool] = (
    WeakKeyDictionary()
)  # per module: whether the plain formula equals its own attention
_warned: set[str] = set()


class OwnAttention(UserWarning):
    """Warning: a model's own code computes its attention, instead of the fused form."""


def implementation(model_class: type[nn.Module] | None, requested: str) -> str:
    """``attn_implementation`` for ``model_class``: ``requested`` if the class supports it, else ``eager``.

    Support means that the model's code looks attentions up by name and, for ``sdpa``, that the class declares
    it. The fallback to ``eager`` emits an :class:`OwnAttention` warning.
    """
    if model_class is None or requested == "eager":
        return "eager"
    names = vars(sys.modules[model_class.__module__])
    by_table = any(name.endswith("_ATTENTION_CLASSES") for name in names)
    by_name = "ALL_ATTENTION_FUNCTIONS" in names and not by_table
    served = bool(getattr(model_class, "_supports_sdpa", False)) if requested == "sdpa" else by_name
    if served:
        return requested
    _warn_once(
        f"{model_class.__name__} has attention layers of its own, without {requested!r}: built with 'eager', "
        "which is slower"
    )
    return "eager"


def own_attention(
    module: nn.Module, heads: int, shared: int, given: Mapping[str, Any], plain: Attend
) -> Attend | None:
    """Eager attention of ``module`` if it differs from the ``plain`` formula; None if ``plain`` may be used.

    The decision depends on the keywords ``given``, or on a numeric comparison with ``heads`` query heads and
    ``shared`` key heads. Raises :class:`TrainError` for an unknown keyword if the file that defines
    ``module`` has no eager attention.
    """
    unknown = [
        name
        for name, value in given.items()
        if value is not None and value is not False and name not in _UNREAD
    ]
    if unknown:
        own, detail = eager_attention(module), f"the keyword {unknown[0]!r}"
        if own is None:
            raise TrainError(
                f"{type(module).__name__} attends with {detail}, and its file has no {_EAGER}: "
                "give fused=false"
            )
    else:
        if module not in _tried:
            _tried[module] = _is_plain(module, heads, shared, plain)
        if _tried[module]:
            return None
        own, detail = eager_attention(module), "a formula of its own"
    _warn_once(
        f"{type(module).__name__} attends with {detail}: computed by the model's own code, which is slower"
    )
    return own


def eager_attention(module: nn.Module) -> Attend | None:
    """``eager_attention_forward`` of the file that defines the forward pass of ``module``; None if absent."""
    forward: Any = inspect.unwrap(type(module).forward)
    found: Attend | None = getattr(forward, "__globals__", {}).get(_EAGER)
    return found


def _is_plain(module: nn.Module, heads: int, shared: int, plain: Attend) -> bool:
    """Whether eager attention of ``module`` equals ``plain`` on random inputs with a partial mask.

    True if ``module`` has no eager attention, since there is nothing to compare with.
    """
    own = eager_attention(module)
    if own is None:
        return True
    generator = torch.Generator().manual_seed(0)
    shapes = ((1, heads, _QUERIES, _WIDTH), (1, shared, _KEYS, _WIDTH), (1, shared, _KEYS, _WIDTH))
    query, key, value = (
        torch.randn(shape, generator=generator, device="cpu", dtype=torch.float32) for shape in shapes
    )
    mask = torch.zeros(1, 1, _QUERIES, _KEYS, device="cpu", dtype=torch.float32)
    mask[..., 0, -2:] = torch.finfo(torch.float32).min
    with torch.no_grad():
        expected: Tensor = plain(module, query, key, value, mask, 0.3, 0.0)
        try:
            found: Tensor = own(module, query, key, value, mask, scaling=0.3, dropout=0.0)[0]
            return found.shape == expected.shape and bool(
                torch.allclose(found, expected, rtol=_TOLERANCE, atol=_TOLERANCE)
            )
        except Exception:  # noqa: BLE001 - a missing argument also means another formula
            return False


def _warn_once(message: str) -> None:
    """Warn once per process and message."""
    if message not in _warned:
        _warned.add(message)
        warnings.warn(message, OwnAttention, stacklevel=4)
