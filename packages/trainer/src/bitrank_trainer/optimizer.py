"""Optimizer over the trainable parameters, and its update after a hook has cut or multiplied some of them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from bitrank_trainer.hooks import RankHook


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Trainable parameters of ``model`` by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def named_adamw(model: nn.Module, rate: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW over the trainable parameters of ``model``, with parameter names in its group."""
    return torch.optim.AdamW(list(trainable(model).items()), lr=rate, weight_decay=weight_decay, fused=True)


def follow(model: nn.Module, optimizer: torch.optim.Optimizer, hook: RankHook) -> None:
    """Update ``optimizer`` after ``hook`` has multiplied or resized parameters of ``model``.

    Moments are cut alike, and divided where parameters were multiplied.
    """
    _scale_moments(optimizer, hook.rescaled() or {})
    if (resized := hook.resized()) is None:
        return
    (group,) = optimizer.param_groups
    states = {
        name: optimizer.state.pop(old, {})
        for name, old in zip(group["param_names"], group["params"], strict=True)
    }
    now = trainable(model)
    for name, parameter in now.items():
        if states[name]:
            optimizer.state[parameter] = (
                _cut(states[name], *resized[name]) if name in resized else states[name]
            )
    group["params"], group["param_names"] = list(now.values()), list(now)


def _scale_moments(optimizer: torch.optim.Optimizer, factors: Mapping[str, float]) -> None:
    """Divide the moments of gradients that shrank by the factor by which their parameters grew."""
    (group,) = optimizer.param_groups
    for name, parameter in zip(group["param_names"], group["params"], strict=True):
        state = optimizer.state.get(parameter)
        if name in factors and state:
            state["exp_avg"].div_(factors[name])
            state["exp_avg_sq"].div_(factors[name] ** 2)


def _cut(state: dict[str, Tensor], axis: int, kept: Tensor) -> dict[str, Tensor]:
    """Select the ``kept`` indices of every moment; the scalar ``step`` is unchanged."""
    return {
        key: value if value.ndim == 0 else value.index_select(axis, kept.to(value.device))
        for key, value in state.items()
    }
