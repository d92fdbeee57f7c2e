"""Whether a module is one whose computation is known here, so that a faster form of it may stand in."""

from __future__ import annotations

from typing import Any

from torch import nn

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def unchanged(*modules: nn.Module) -> bool:
    """Whether all of ``modules`` are of transformers' or torch's own classes, with their own forward passes
    or fused forms of ours, and without hooks."""
    return all(_is_library(module) and not replaced(module) and not hooked(module) for module in modules)


def replaced(module: nn.Module) -> bool:
    """Whether a forward pass that is no fused form of ours was put on ``module`` itself."""
    found = vars(module).get("forward")
    return found is not None and not _defined_in(found).startswith("bitrank_")


def hooked(module: nn.Module) -> bool:
    """Whether ``module`` has a hook; those of sharding do not count, since they only gather what is computed
    with."""
    return any(_foreign(hook) for name in _HOOKS for hook in getattr(module, name).values())


def _is_library(module: nn.Module) -> bool:
    kinds = (
        kind.__module__
        for kind in type(module).__mro__
        if not kind.__module__.startswith("torch.distributed.")
    )
    return next(kinds).startswith(("transformers.", "torch."))


def _foreign(hook: Any) -> bool:
    return not _defined_in(hook).startswith("torch.distributed")


def _defined_in(function: Any) -> str:
    """The module that defines ``function``, or what a partial one calls."""
    return str(getattr(getattr(function, "func", function), "__module__", ""))
