"""Whether a module is one whose computation is known here: a fused form may only stand in for such a module.

A class is known by its name among transformers' own models, and only as long as nobody changed it: a subclass
with another forward pass, a forward pass put on one module, and hooks on modules that a fused form does not
call are all reasons to leave the plain way.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import nn

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def known_kind(module: nn.Module, names: Collection[str], method: str = "forward") -> str | None:
    """The name among ``names`` of the transformers class that ``module`` is, with that class's own
    ``method``; None if it is none.

    Sharding gives a block a class of its own, which inherits the method; a fused form may have been put on
    the module before.
    """
    for kind in type(module).__mro__:
        if kind.__name__ in names and kind.__module__.startswith("transformers.models."):
            inherited = getattr(type(module), method) is getattr(kind, method)
            return kind.__name__ if inherited and not replaced(module, method) else None
    return None


def replaced(module: nn.Module, method: str = "forward") -> bool:
    """Whether a ``method`` that is no fused form of ours was put on ``module`` itself."""
    found = vars(module).get(method)
    return found is not None and not _defined_in(found).startswith("bitrank_")


def hooked(*modules: Any) -> bool:
    """Whether any of ``modules`` has a hook that a fused form would pass by. Those of sharding are on blocks,
    which are called."""
    return any(
        _foreign(hook) for module in modules for name in _HOOKS for hook in getattr(module, name, {}).values()
    )


def _foreign(hook: Any) -> bool:
    return not _defined_in(hook).startswith("torch.distributed")


def _defined_in(function: Any) -> str:
    """The module that defines ``function``, or what a partial one calls."""
    return str(getattr(getattr(function, "func", function), "__module__", ""))
