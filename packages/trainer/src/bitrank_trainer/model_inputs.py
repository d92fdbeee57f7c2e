"""Batches as tensors on a device, and the inputs of models; shared by all objectives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Batch = Mapping[str, np.ndarray]
Row = dict[str, Any]
"""Values by column: numbers, and texts in rows of whole examples."""


def tensor_of(array: np.ndarray, device: str) -> Tensor:
    """``array`` as a tensor of the same shape and dtype on ``device``."""
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)


def decoder_inputs(batch: Batch, device: str) -> dict[str, Any]:
    """Inputs of a decoder without a key-value cache."""
    padded = int(batch["attention_mask"].min()) == 0
    # Without a mask, attention takes its plain causal path, which is faster.
    mask_BT = tensor_of(batch["attention_mask"], device) if padded else None
    return {"input_ids": tensor_of(batch["input_ids"], device), "attention_mask": mask_BT, "use_cache": False}


def segments(model: nn.Module, batch: Batch, device: str) -> dict[str, Tensor]:
    """Segments of pairs of texts, for models that distinguish segments, such as BERT."""
    config: Any = getattr(model, "config", None)
    if "token_type_ids" not in batch or getattr(config, "type_vocab_size", None) in (None, 0, 1):
        return {}
    return {"token_type_ids": tensor_of(batch["token_type_ids"], device)}


def real_tokens(batch: Batch) -> list[int]:
    """Number of tokens without padding of each sequence."""
    return [int(n) for n in batch["attention_mask"].sum(1)]
