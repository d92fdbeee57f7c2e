"""Checks that a module computes the known formula, so that a fused form may replace it."""

from __future__ import annotations

from typing import Any

from torch import nn

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def unchanged(*modules: nn.Module) -> bool:
    """Whether ``modules`` are unmodified library modules: no foreign forward pass, no hooks.

    Library means a class of transformers or torch. A fused form from a bitrank package counts as unmodified.
    """
    return all(_is_library(module) and not replaced(module) and not hooked(module) for module in modules)


def replaced(module: nn.Module) -> bool:
    """Whether the instance ``module`` has a foreign forward pass, i.e. none of the fused forms."""
    found = vars(module).get("forward")
    return found is not None and not _defined_in(found).startswith("bitrank_")


def hooked(module: nn.Module) -> bool:
    """Whether ``module`` has a hook; sharding hooks do not count, since they only gather parameters."""
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
    """Name of the Python module that defines ``function``, or the function wrapped by a ``partial``."""
    return str(getattr(getattr(function, "func", function), "__module__", ""))
