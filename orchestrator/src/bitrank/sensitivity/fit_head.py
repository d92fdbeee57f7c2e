"""Fit a new head to the outputs of the frozen body, so that the task's loss and gradients are meaningful."""

from __future__ import annotations

from functools import partial

import torch
from bitrank_data import Batch
from bitrank_quant.sensitivity import Forward, Replay
from torch import nn

from bitrank.process.compute import objective_for

_STEPS = 50
# Factor of ½‖weights‖². Without it a few hundred features can separate a thousand sentences by memorizing
# them.
_DECAY = 1e-4


def logits_and_labels(kind: str, device: str) -> Forward:
    """Return a function from a model and a batch to logits and labels, for this kind of task."""
    return partial(objective_for(kind, fused=False).logits_and_labels, device=device)


def fit_head(
    model: nn.Module, trained_modules: list[str], kind: str, batches: list[Batch], device: str
) -> None:
    """Fit the modules that have no stored weights by L-BFGS on all ``batches``, in fp32.

    The body runs once and its outputs are cached, unless a new module is inside the body.
    """
    heads = [model.get_submodule(name) for name in trained_modules]
    parameters = [p for head in heads for p in head.parameters()]
    body = str(model.base_model_prefix)
    inside = any(name.startswith(f"{body}.") for name in trained_modules)
    replay = Replay(model, batches, logits_and_labels(kind, device), blocks=None if inside else [body])
    kept = [p.dtype for p in parameters]
    for head in heads:
        head.float()
    hooks = [
        head.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(), *inputs[1:])) for head in heads
    ]
    optimizer = torch.optim.LBFGS(parameters, max_iter=_STEPS, line_search_fn="strong_wolfe")
    for parameter in parameters:
        parameter.requires_grad_(True)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        total, units = torch.zeros((), device=device), 0
        for loss, count in replay.losses():
            loss.backward()
            total, units = total + loss.detach(), units + count
        for parameter in parameters:
            assert parameter.grad is not None
            parameter.grad = parameter.grad / units + _DECAY * parameter.detach()
        return total / units + _DECAY / 2 * sum(p.detach().square().sum() for p in parameters)

    optimizer.step(closure)
    for hook in hooks:
        hook.remove()
    for parameter, dtype in zip(parameters, kept, strict=True):
        parameter.requires_grad_(False)
        parameter.data = parameter.data.to(dtype)
