"""Random states of the CPU and the accelerator, which determine dropout."""

from __future__ import annotations

import torch
from torch import Tensor


def random_states(device: str) -> dict[str, Tensor]:
    """Random states by device, as byte tensors on the CPU."""
    states = {"cpu": torch.get_rng_state()}
    if device == "cuda":
        states["cuda"] = torch.cuda.get_rng_state()
    if device == "mps":
        states["mps"] = torch.mps.get_rng_state()
    return states


def restore_random_states(states: dict[str, Tensor]) -> None:
    """Restore the output of :func:`random_states`."""
    torch.set_rng_state(states["cpu"])
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"])
    if "mps" in states:
        torch.mps.set_rng_state(states["mps"])
