"""Checks that a module computes the known formula, so that a fused form may replace it.

A class is known by its name among transformers' models. A subclass with another forward pass, a forward pass
set on the instance, and hooks on modules that a fused form does not call disqualify a module; it keeps the
plain path.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import nn

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def known_kind(module: nn.Module, names: Collection[str], method: str = "forward") -> str | None:
    """Name of the transformers class of ``module`` among ``names``; None if absent or modified.

    ``method`` must be the one of that class. Sharding subclasses a block's class and inherits the method; a
    fused form already set on the instance is allowed.
    """
    for kind in type(module).__mro__:
        if kind.__name__ in names and kind.__module__.startswith("transformers.models."):
            inherited = getattr(type(module), method) is getattr(kind, method)
            return kind.__name__ if inherited and not replaced(module, method) else None
    return None


def replaced(module: nn.Module, method: str = "forward") -> bool:
    """Whether the instance ``module`` has a foreign ``method``, i.e. none of the fused forms."""
    found = vars(module).get(method)
    return found is not None and not _defined_in(found).startswith("bitrank_")


def hooked(*modules: Any) -> bool:
    """Whether any of ``modules`` has a hook that a fused form would skip.

    Sharding hooks do not count: they are on blocks, which are still called.
    """
    return any(
        _foreign(hook) for module in modules for name in _HOOKS for hook in getattr(module, name, {}).values()
    )


def _foreign(hook: Any) -> bool:
    return not _defined_in(hook).startswith("torch.distributed")


def _defined_in(function: Any) -> str:
    """Name of the Python module that defines ``function``, or the function wrapped by a ``partial``."""
    return str(getattr(getattr(function, "func", function), "__module__", ""))
