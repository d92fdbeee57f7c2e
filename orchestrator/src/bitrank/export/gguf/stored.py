"""One tensor of a GGUF file in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bitrank.export.gguf.tensor_types import TENSOR_TYPES, TensorType

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Stored:
    """One tensor of a file: its type and its rows, (O, bytes), or the bytes of a vector.

    ``kept``: the codes are those of the planned format.
    """

    type: TensorType
    rows: Array
    kept: bool = True

    @classmethod
    def number(cls, name: str, values: Tensor) -> Stored:
        """``values`` as plain numbers of the type called ``name``."""
        kind = TENSOR_TYPES[name]
        return cls(kind, kind.encode(values.detach().cpu().float().numpy()))

    def values(self) -> Tensor:
        """The numbers that a program reads, in fp32."""
        return torch.from_numpy(np.array(self.type.decode(self.rows)))
