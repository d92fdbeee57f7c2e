"""Objective of extractive question answering: the first and the last token of the answer.

A model has two outputs per token, the logits of start and end. Possible positions are the tokens of the
context and the first token of the sequence, which means that the answer is not in it (Devlin et al. 2019,
section 4.3); all other positions have no probability. Labels (B, T) are sums of the bits ``CONTEXT``,
``START`` and ``END`` of :mod:`bitrank_data.question_answering`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bitrank_trainer.model_inputs import (
    Batch,
    LossOfInputs,
    Row,
    encoder_arrays,
    on_device,
    real_tokens,
    tensor_of,
)

_CONTEXT, _START, _END = 1, 2, 4
_ANSWER_TOKENS = 30  # longest answer
# Logit of impossible positions: finite, since divergences of two models subtract log probabilities.
_IMPOSSIBLE = -1e9


@dataclass(frozen=True)
class QuestionAnswering(LossOfInputs):
    """Mean of the cross entropies of start and end; metric: token F1 of the answers' texts.

    The rows of a batch are those of windows; metrics are computed from one row per question
    (``bitrank_data.DataKind.merge``).
    """

    metric: str = "token_f1"
    higher_is_better: bool = True

    def inputs(self, model: nn.Module, batch: Batch) -> dict[str, np.ndarray]:
        return _arrays(model, batch)

    def loss_of(self, model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
        return F.cross_entropy(_logits(model, inputs).flatten(0, 1), inputs["positions"])

    def weight(self, batch: Batch) -> int:
        return len(batch["labels"])

    def logits_and_labels(self, model: nn.Module, batch: Batch, device: str) -> tuple[Tensor, Tensor]:
        """Two rows per sequence: start logits of all sequences, then end logits (2 · B, T)."""
        inputs = on_device(_arrays(model, batch), device)
        return _logits(model, inputs).flatten(0, 1), inputs["positions"]

    def rows(self, model: nn.Module, batch: Batch, device: str) -> list[Row]:
        inputs = on_device(_arrays(model, batch), device)
        logits_2BT = _logits(model, inputs)
        labels_2B1 = inputs["positions"].view(2, -1, 1)
        loss_B = -logits_2BT.log_softmax(-1).gather(2, labels_2B1).mean((0, 2))
        score_B, start_B, end_B = best_spans(logits_2BT, tensor_of(_has_bit(batch, _CONTEXT), device))
        columns = zip(
            batch["index"].tolist(),
            loss_B.tolist(),
            real_tokens(batch),
            score_B.tolist(),
            start_B.tolist(),
            end_B.tolist(),
            logits_2BT[:, :, 0].sum(0).tolist(),
            strict=True,
        )
        keys = ("index", "loss", "tokens", "score", "start", "end", "null")
        return [dict(zip(keys, values, strict=True)) for values in columns]

    def metrics(self, rows: list[Row]) -> dict[str, float]:
        """Mean loss over windows, and the means of exact match and F1 over questions, in [0, 1]."""
        windows = sum(row["windows"] for row in rows)
        found = {"loss": sum(row["loss"] for row in rows) / windows}
        for name in ("token_f1", "exact_match"):
            found[name] = sum(row[name] for row in rows) / len(rows)
        return found

    def plain(self) -> QuestionAnswering:
        return self


def best_spans(logits_2BT: Tensor, is_context_BT: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Highest sum of a start and an end logit over spans of the context, and the span's first and last token.

    A span has at most 30 tokens. All results have shape (B,).
    """
    start_BT, end_BT = logits_2BT.masked_fill(~is_context_BT, -torch.inf)
    ends_BTL = F.pad(end_BT, (0, _ANSWER_TOKENS - 1), value=-torch.inf).unfold(1, _ANSWER_TOKENS, 1)
    score_B, place_B = (start_BT[:, :, None] + ends_BTL).flatten(1).max(1)
    first_B = place_B // _ANSWER_TOKENS
    return score_B, first_B, first_B + place_B % _ANSWER_TOKENS


def _arrays(model: nn.Module, batch: Batch) -> dict[str, np.ndarray]:
    """Inputs of the model, positions of starts and then ends (2 · B,), and the possible tokens (B, T)."""
    is_possible_BT = _has_bit(batch, _CONTEXT)
    is_possible_BT[:, 0] = True
    positions_2B = np.concatenate([_position(batch, bit) for bit in (_START, _END)])
    return {**encoder_arrays(model, batch), "positions": positions_2B, "is_possible": is_possible_BT}


def _logits(model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    """Start and end logits in fp32 (2, B, T)."""
    called = {name: tensor for name, tensor in inputs.items() if name not in ("positions", "is_possible")}
    output: Any = model(**called)
    logits_2BT = torch.stack((output.start_logits, output.end_logits)).float()
    return logits_2BT.masked_fill(~inputs["is_possible"], _IMPOSSIBLE)


def _has_bit(batch: Batch, bit: int) -> np.ndarray:
    """Whether the label of each token has ``bit`` (B, T); padding has none."""
    labels_BT = np.maximum(batch["labels"], 0)
    found_BT: np.ndarray = (labels_BT & bit) > 0
    return found_BT


def _position(batch: Batch, bit: int) -> np.ndarray:
    """First token whose label has ``bit`` (B,)."""
    position_B: np.ndarray = _has_bit(batch, bit).argmax(1)
    return position_B
