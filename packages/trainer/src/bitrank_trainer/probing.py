"""Objectives of probing: the one token that continues a prompt, and its rank among the vocabulary.

A decoder predicts it after the prompt, an encoder at a mask token.

Petroni et al., "Language Models as Knowledge Bases?", 2019.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bitrank_trainer.fused.lm_head import split_head
from bitrank_trainer.model_inputs import Batch, Row, decoder_inputs, real_tokens, tensor_of

_IGNORED = -100  # label of positions without a target


@dataclass(frozen=True)
class Probing:
    """Cross entropy of the token after the prompt; metrics: precision at 1 and mean reciprocal rank.

    Labels (B,) are tokens. ``fused`` computes logits at the last position only if the model's head supports
    it.
    """

    metric: str = "p_at_1"
    higher_is_better: bool = True
    fused: bool = True

    def loss(self, model: nn.Module, batch: Batch, device: str) -> Tensor:
        return F.cross_entropy(*self.logits_and_labels(model, batch, device))

    def weight(self, batch: Batch) -> int:
        return len(batch["labels"])

    def logits_and_labels(self, model: nn.Module, batch: Batch, device: str) -> tuple[Tensor, Tensor]:
        """Next-token logits at the last token of each sequence (B, V), and labels (B,)."""
        labels_B = tensor_of(batch["labels"], device)
        rows_B = torch.arange(len(labels_B), device=device)
        last_B = tensor_of(batch["attention_mask"].sum(1) - 1, device)
        parts = split_head(model) if self.fused else None
        output: Any = (model if parts is None else parts.body)(**decoder_inputs(batch, device))
        if parts is None:
            return output.logits[rows_B, last_B].float(), labels_B
        return parts.head(output.last_hidden_state[rows_B, last_B]).float(), labels_B

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

    def logits_and_labels(self, model: nn.Module, batch: Batch, device: str) -> tuple[Tensor, Tensor]:
        """Logits at the mask of each sequence (B, V), and labels (B,)."""
        labels_BT = tensor_of(batch["labels"], device)
        rows_B, masks_B = (labels_BT != _IGNORED).nonzero(as_tuple=True)
        ids_BT = tensor_of(batch["input_ids"], device)
        output: Any = model(input_ids=ids_BT, attention_mask=tensor_of(batch["attention_mask"], device))
        return output.logits[rows_B, masks_B].float(), labels_BT[rows_B, masks_B]

    def plain(self) -> MaskedProbing:
        return self


def ranks(logits_BV: Tensor, labels_B: Tensor) -> Tensor:
    """Rank of each label from 1 (B,); of equal logits, the lower token comes first, as in ``argmax``."""
    label_B1 = labels_B[:, None]
    right_B1 = logits_BV.gather(1, label_B1)
    is_lower_BV = torch.arange(logits_BV.shape[1], device=logits_BV.device) < label_B1
    is_before_BV = (logits_BV > right_B1) | ((logits_BV == right_B1) & is_lower_BV)
    return 1 + is_before_BV.sum(1)
