"""Objectives of probing: the one token that continues a prompt, and its rank among the vocabulary.

A decoder predicts it after the prompt, an encoder at a mask token.

Petroni et al., "Language Models as Knowledge Bases?", 2019.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bitrank_trainer.fused.lm_head import split_head
from bitrank_trainer.model_inputs import (
    Batch,
    LossOfInputs,
    Row,
    decoder_arrays,
    decoder_call,
    on_device,
    real_tokens,
)

_IGNORED = -100  # label of positions without a target


@dataclass(frozen=True)
class Probing(LossOfInputs):
    """Cross entropy of the token after the prompt; metrics: precision at 1 and mean reciprocal rank.

    Labels (B,) are tokens. ``fused`` computes logits at the last position only if the model's head supports
    it.
    """

    metric: str = "p_at_1"
    higher_is_better: bool = True
    fused: bool = True

    def inputs(self, model: nn.Module, batch: Batch) -> dict[str, np.ndarray]:
        last_B = batch["attention_mask"].sum(1) - 1
        return {**decoder_arrays(batch), "target": batch["labels"], "position": last_B}

    def loss_of(self, model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
        return F.cross_entropy(self._logits(model, inputs), inputs["target"])

    def weight(self, batch: Batch) -> int:
        return len(batch["labels"])

    def logits_and_labels(self, model: nn.Module, batch: Batch, device: str) -> tuple[Tensor, Tensor]:
        """Next-token logits at the last token of each sequence (B, V), and labels (B,)."""
        inputs = on_device(self.inputs(model, batch), device)
        return self._logits(model, inputs), inputs["target"]

    def _logits(self, model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
        last_B = inputs["position"]
        rows_B = torch.arange(len(last_B), device=last_B.device)
        parts = split_head(model) if self.fused else None
        output: Any = (model if parts is None else parts.body)(**decoder_call(inputs))
        if parts is None:
            return output.logits[rows_B, last_B].float()
        return parts.head(output.last_hidden_state[rows_B, last_B]).float()

    def rows(self, model: nn.Module, batch: Batch, device: str) -> list[Row]:
        logits_BV, labels_B = self.logits_and_labels(model, batch, device)
        columns = zip(
            batch["index"].tolist(),
            labels_B.tolist(),
            logits_BV.argmax(-1).tolist(),
            ranks(logits_BV, labels_B).tolist(),
            F.cross_entropy(logits_BV, labels_B, reduction="none").tolist(),
            real_tokens(batch),
            strict=True,
        )
        keys = ("index", "label", "prediction", "rank", "loss", "tokens")
        rows = [dict(zip(keys, values, strict=True)) for values in columns]
        return [{**row, "reciprocal_rank": 1 / row["rank"]} for row in rows]

    def metrics(self, rows: list[Row]) -> dict[str, float]:
        count = len(rows)
        return {
            "loss": sum(row["loss"] for row in rows) / count,
            "p_at_1": sum(row["rank"] == 1 for row in rows) / count,
            "mrr": sum(row["reciprocal_rank"] for row in rows) / count,
        }

    def plain(self) -> Probing:
        return replace(self, fused=False)


@dataclass(frozen=True)
class MaskedProbing(Probing):
    """Cross entropy of the masked token; metrics as those of :class:`Probing`.

    Labels (B, T) have one token per sequence, at its mask; other positions are −100.
    """

    def inputs(self, model: nn.Module, batch: Batch) -> dict[str, np.ndarray]:
        is_target_BT = batch["labels"] != _IGNORED
        return {
            "input_ids": batch["input_ids"],
            "attention_mask": batch["attention_mask"],
            "target": batch["labels"][is_target_BT],
            "position": is_target_BT.argmax(1),
        }

    def _logits(self, model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
        """Logits at the mask of each sequence (B, V)."""
        masks_B = inputs["position"]
        rows_B = torch.arange(len(masks_B), device=masks_B.device)
        output: Any = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
        return output.logits[rows_B, masks_B].float()

    def plain(self) -> MaskedProbing:
        return self


def ranks(logits_BV: Tensor, labels_B: Tensor) -> Tensor:
    """Rank of each label from 1 (B,); of equal logits, the lower token comes first, as in ``argmax``."""
    label_B1 = labels_B[:, None]
    right_B1 = logits_BV.gather(1, label_B1)
    is_lower_BV = torch.arange(logits_BV.shape[1], device=logits_BV.device) < label_B1
    is_before_BV = (logits_BV > right_B1) | ((logits_BV == right_B1) & is_lower_BV)
    return 1 + is_before_BV.sum(1)
