"""The second moments of a layer's inputs, and matrices split into the groups of a format."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bitrank_quant.errors import QuantError


@dataclass(frozen=True)
class InputMoments:
    """Second moments of the inputs x of one linear layer over N calibration positions.

    ``second`` is the whole matrix (1/N) Σ x xᵀ, (I, I), or its diagonal alone, (I,). Raises
    :class:`QuantError` when an entry is not finite or the diagonal has a negative entry.
    """

    second: Tensor

    def __post_init__(self) -> None:
        if not torch.isfinite(self.second).all():
            raise QuantError(
                "the second moments of the inputs are not finite; check the model and the calibration data"
            )
        if (self.diagonal_I < 0).any():
            raise QuantError("a second moment of an input is negative; expected the mean of squares")

    @property
    def diagonal_I(self) -> Tensor:
        """E[x_i²], (I,)."""
        return self.second if self.second.dim() == 1 else self.second.diagonal()

    @property
    def input_II(self) -> Tensor | None:
        """E[x xᵀ], (I, I); None where the diagonal alone was given."""
        return None if self.second.dim() == 1 else self.second

    def check_width(self, columns: int) -> None:
        """Raise :class:`QuantError` unless these are the moments of ``columns`` inputs."""
        expected = (columns,) if self.second.dim() == 1 else (columns, columns)
        if tuple(self.second.shape) != expected:
            raise QuantError(f"expected input moments of shape {expected}, got {tuple(self.second.shape)}")


def grouped(weight_OI: Tensor, block: int | None) -> Tensor:
    """fp32 weights as (O, G, B), in whole groups. A row is padded with its last value, as formats do."""
    weight_OI = weight_OI.detach().float().contiguous()
    if block is None:
        return weight_OI[:, None]
    if missing := -weight_OI.shape[1] % block:
        weight_OI = torch.cat([weight_OI, weight_OI[:, -1:].expand(-1, missing)], dim=1)
    return weight_OI.view(len(weight_OI), -1, block)


def column_weights(moments: InputMoments | None, like_OI: Tensor, block: int | None) -> Tensor:
    """The weight of each column's squared error, (G, B) in fp32 on the device of ``like_OI``.

    It is the second moment of the column's input, 1 where there are no moments or all are zero, and 0 for
    padding.
    """
    columns = like_OI.shape[1]
    weight_I = torch.ones(columns, device=like_OI.device)
    if moments is not None and moments.diagonal_I.any():
        weight_I = moments.diagonal_I.to(like_OI.device, torch.float32)
    width = block or columns
    return torch.nn.functional.pad(weight_I, (0, -columns % width)).view(-1, width)
