"""Apple's MPS has no fp64 and, in torch 2.13, no eigenvalues: these are computed on the CPU."""

from __future__ import annotations

from torch import Tensor


def off_mps(tensor: Tensor) -> Tensor:
    """``tensor`` on the CPU if it is on MPS, else itself. Call it before a conversion to fp64.

    One call ``to("cpu", torch.float64)`` converts on MPS before it copies, which raises or gives zeros
    (pytorch issue 197715).
    """
    return tensor.cpu() if tensor.device.type == "mps" else tensor
