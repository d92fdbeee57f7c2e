"""A head that has no weights yet, fitted to what the frozen body gives, so that the task's loss and its gradients mean something."""

from __future__ import annotations

from functools import partial

import torch
from bitrank_data import Batch
from bitrank_quant.sensitivity import Forward, Replay
from bitrank_trainer import PLAIN_OBJECTIVES
from torch import nn

_STEPS = 50
_DECAY = (
    1e-4  # of ½‖weights‖²: a few hundred features tell a thousand sentences apart without learning anything
)


def logits_and_labels(kind: str, device: str) -> Forward:
    """What a model answers to a batch of this kind of task, and what is right."""
    return partial(PLAIN_OBJECTIVES[kind].logits_and_labels, device=device)


def fit_head(
    model: nn.Module, trained_modules: list[str], kind: str, batches: list[Batch], device: str
) -> None:
    """Fit the modules that no file had to the features that the frozen body gives, by L-BFGS on the whole of ``batches``, in fp32.

    The body runs once: what it gives is kept, as long as no fresh module lies inside it.
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
