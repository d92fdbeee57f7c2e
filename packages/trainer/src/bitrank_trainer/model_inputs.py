"""Batches as tensors on a device, and the inputs of models; shared by all objectives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Batch = Mapping[str, np.ndarray]
Row = dict[str, Any]
"""Values by column: numbers, and texts in rows of whole examples."""


class LossOfInputs(ABC):
    """Base of objectives: the loss of a batch in two parts, arrays on the host and operations on the device.

    A device that repeats recorded operations (:mod:`~bitrank_trainer.cuda_graphs`) needs all inputs before.
    """

    @abstractmethod
    def inputs(self, model: nn.Module, batch: Batch) -> dict[str, np.ndarray]:
        """All arrays that :meth:`loss_of` reads."""

    @abstractmethod
    def loss_of(self, model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
        """The mean loss, from :meth:`inputs` on the model's device."""

    def loss(self, model: nn.Module, batch: Batch, device: str) -> Tensor:
        """The mean loss of ``batch``."""
        return self.loss_of(model, on_device(self.inputs(model, batch), device))


def tensor_of(array: np.ndarray, device: str) -> Tensor:
    """``array`` as a tensor of the same shape and dtype on ``device``."""
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)


def on_device(arrays: Mapping[str, np.ndarray], device: str) -> dict[str, Tensor]:
    """``arrays`` as tensors on ``device``."""
    return {name: tensor_of(array, device) for name, array in arrays.items()}


def decoder_arrays(batch: Batch) -> dict[str, np.ndarray]:
    """Token ids for a decoder, and the mask of a batch with padding."""
    ids = {"input_ids": batch["input_ids"]}
    # Without a mask, attention takes its plain causal path, which is faster.
    padded = int(batch["attention_mask"].min()) == 0
    return {**ids, "attention_mask": batch["attention_mask"]} if padded else ids


def decoder_call(inputs: Mapping[str, Tensor]) -> dict[str, Any]:
    """Arguments of a decoder's forward pass without a key-value cache, from :func:`decoder_arrays`."""
    mask_BT = inputs.get("attention_mask")
    return {"input_ids": inputs["input_ids"], "attention_mask": mask_BT, "use_cache": False}


def decoder_inputs(batch: Batch, device: str) -> dict[str, Any]:
    """Arguments of a decoder's forward pass over ``batch`` without a key-value cache."""
    return decoder_call(on_device(decoder_arrays(batch), device))


def encoder_arrays(model: nn.Module, batch: Batch) -> dict[str, np.ndarray]:
    """Token ids, mask, and segments of pairs of texts for models that distinguish them, such as BERT."""
    arrays = {name: batch[name] for name in ("input_ids", "attention_mask")}
    config: Any = getattr(model, "config", None)
    if "token_type_ids" in batch and getattr(config, "type_vocab_size", None) not in (None, 0, 1):
        arrays["token_type_ids"] = batch["token_type_ids"]
    return arrays


def real_tokens(batch: Batch) -> list[int]:
    """Number of tokens without padding of each sequence."""
    return [int(n) for n in batch["attention_mask"].sum(1)]
