"""Where the plain formula of :mod:`~bitrank_trainer.fused.attention` is not what a model computes, and its own
attention takes over.

Models differ by what they add to scores (T5's position bias), by what they do to them (Gemma 2 caps them) and
by what they add to the softmax (attention sinks), and tell that by keywords, or keep it in the module. A
keyword that is unknown here and not None means the model's own ``eager_attention_forward``. Without such a
keyword that function is tried once on a few random numbers for each module: only where the plain formula
gives what it gives does the plain formula take its place. Either way is said once by a :class:`OwnAttention`
warning, as the own attention is slower and keeps more.
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
# What eager attentions of transformers are given and do not read: the mask says it already, or another
# implementation needs it.
_UNREAD = frozenset(
    ("position_ids", "cache_position", "is_causal", "sliding_window", "use_cache", "num_items_in_batch", "return_dict",
     "output_hidden_states", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")
)  # fmt: skip
_TOLERANCE = 1e-5
_QUERIES, _KEYS, _WIDTH = 3, 5, 8  # of the numbers that an attention is tried on
_tried: WeakKeyDictionary[nn.Module, bool] = (
    WeakKeyDictionary()
)  # whether the plain formula is that of the module
_said: set[str] = set()


class OwnAttention(UserWarning):
    """A model's attention is computed by its own code instead of the fused one."""


def implementation(model_class: type[nn.Module] | None, wanted: str) -> str:
    """The ``attn_implementation`` to build a model of ``model_class`` with: ``wanted`` where its code looks
    attentions up by name and supports that one, else ``eager``, which is said by a warning."""
    if model_class is None or wanted == "eager":
        return "eager"
    names = vars(sys.modules[model_class.__module__])
    by_table = any(name.endswith("_ATTENTION_CLASSES") for name in names)
    by_name = "ALL_ATTENTION_FUNCTIONS" in names and not by_table
    served = bool(getattr(model_class, "_supports_sdpa", False)) if wanted == "sdpa" else by_name
    if served:
        return wanted
    _say(
        f"{model_class.__name__} has attention layers of its own, without {wanted!r}: built with 'eager', which is slower"
    )
    return "eager"


def own_attention(
    module: nn.Module, heads: int, shared: int, given: Mapping[str, Any], plain: Attend
) -> Attend | None:
    """The eager attention of ``module`` where it is not the ``plain`` formula, by the keywords ``given`` or
    by what it computes of ``heads`` queries that share ``shared`` keys; None where the plain formula may be
    used.

    Raises :class:`TrainError` for a keyword that is unknown here where the file that defines ``module`` has
    no eager attention.
    """
    unknown = [
        name
        for name, value in given.items()
        if value is not None and value is not False and name not in _UNREAD
    ]
    if unknown:
        own, what = eager_attention(module), f"the keyword {unknown[0]!r}"
        if own is None:
            raise TrainError(
                f"{type(module).__name__} attends with {what}, and its file has no {_EAGER}: give fused=false"
            )
    else:
        if module not in _tried:
            _tried[module] = _is_plain(module, heads, shared, plain)
        if _tried[module]:
            return None
        own, what = eager_attention(module), "a formula of its own"
    _say(f"{type(module).__name__} attends with {what}: computed by the model's own code, which is slower")
    return own


def eager_attention(module: nn.Module) -> Attend | None:
    """The function that ``module`` attends with by default, from the file that holds its forward pass; None
    where it has none."""
    forward: Any = inspect.unwrap(type(module).forward)
    found: Attend | None = getattr(forward, "__globals__", {}).get(_EAGER)
    return found


def _is_plain(module: nn.Module, heads: int, shared: int, plain: Attend) -> bool:
    """Whether the eager attention of ``module`` gives what ``plain`` gives, tried on random numbers and a
    mask that hides some keys. A module without one has nothing to differ from."""
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
        except Exception:  # noqa: BLE001 - it needs what it was not given here, so it is no plain formula
            return False


def _say(what: str) -> None:
    """Once a process for each sentence."""
    if what not in _said:
        _said.add(what)
        warnings.warn(what, OwnAttention, stacklevel=4)
