"""Objectives: classification of texts and pairs, causal language modelling, answers in dialogues,
encoder-decoders; the registry of all objectives.

An objective computes from a model and a batch the training loss, and for evaluation one row per sequence.
Rows carry the example's index, so that two models can be compared sequence by sequence.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from torch import Tensor, nn
from torch.nn import functional as F

from bitrank_trainer.fused.lm_head import head_loss, head_scores, split_head
from bitrank_trainer.last_position import last_positions, last_token_head, read_positions
from bitrank_trainer.model_inputs import (
    Batch,
    LossOfInputs,
    Row,
    decoder_arrays,
    decoder_call,
    decoder_inputs,
    encoder_arrays,
    on_device,
    real_tokens,
)
from bitrank_trainer.model_inputs import tensor_of as _tensor
from bitrank_trainer.probing import MaskedProbing, Probing
from bitrank_trainer.question_answering import QuestionAnswering


class Objective(Protocol):
    """Loss and metrics of a task.

    ``metric`` names the main metric, which selects the best parameters in validation; ``higher_is_better`` is
    its direction.
    """

    @property
    def metric(self) -> str: ...

    @property
    def higher_is_better(self) -> bool: ...

    def loss(self, model: nn.Module, batch: Batch, device: str) -> Tensor:
        """Mean loss over the units that :meth:`weight` counts, in nats for a cross entropy."""

    def weight(self, batch: Batch) -> int:
        """Denominator of the mean in :meth:`loss`, such as the number of sequences or predicted tokens."""

    def logits_and_labels(self, model: nn.Module, batch: Batch, device: str) -> tuple[Tensor, Tensor]:
        """Logits (positions, classes) and labels (positions,) of the whole batch; −100 is ignored."""

    def rows(self, model: nn.Module, batch: Batch, device: str) -> list[Row]:
        """One row per sequence: index, loss (nats, summed over the sequence), tokens, and own fields."""

    def metrics(self, rows: list[Row]) -> dict[str, float]:
        """Metrics over all rows of an evaluation: ``loss`` and the objective's own.

        A kind of task may merge the rows of an example's sequences before (:func:`evaluate`).
        """

    def plain(self) -> Objective:
        """The same objective on whole logits by PyTorch's own operations, without fused products."""


@dataclass(frozen=True)
class Classification(LossOfInputs):
    """Cross entropy over classes; metric: accuracy.

    Also macro-F1 and Matthews' correlation, which do not reward the most frequent class.
    """

    metric: str = "acc"
    higher_is_better: bool = True

    def inputs(self, model: nn.Module, batch: Batch) -> dict[str, np.ndarray]:
        return {**_classifier_arrays(model, batch), "classes": batch["labels"]}

    def loss_of(self, model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
        called = {name: tensor for name, tensor in inputs.items() if name != "classes"}
        return F.cross_entropy(_classes(model, called), inputs["classes"])

    def weight(self, batch: Batch) -> int:
        return len(batch["labels"])

    def logits_and_labels(self, model: nn.Module, batch: Batch, device: str) -> tuple[Tensor, Tensor]:
        return _logits(model, batch, device), _tensor(batch["labels"], device)

    def rows(self, model: nn.Module, batch: Batch, device: str) -> list[Row]:
        labels_B = _tensor(batch["labels"], device)
        logits_BC = _logits(model, batch, device)
        loss_B = F.cross_entropy(logits_BC, labels_B, reduction="none").tolist()
        confidence_B, predicted_B = (part.tolist() for part in logits_BC.softmax(-1).max(-1))
        columns = zip(
            batch["index"].tolist(),
            batch["labels"].tolist(),
            predicted_B,
            confidence_B,
            loss_B,
            real_tokens(batch),
            strict=True,
        )
        keys = ("index", "label", "prediction", "confidence", "loss", "tokens")
        return [dict(zip(keys, values, strict=True)) for values in columns]

    def metrics(self, rows: list[Row]) -> dict[str, float]:
        labels_N = np.array([row["label"] for row in rows])
        predictions_N = np.array([row["prediction"] for row in rows])
        return {
            "loss": sum(row["loss"] for row in rows) / len(rows),
            "acc": float((labels_N == predictions_N).mean()),
            "macro_f1": macro_f1(labels_N, predictions_N),
            "mcc": matthews(labels_N, predictions_N),
        }

    def plain(self) -> Objective:
        return self


@dataclass(frozen=True)
class LanguageModelling(LossOfInputs):
    """Next-token cross entropy; perplexity = exp(total nats / predicted tokens).

    Tokens whose label is −100 are not predicted, such as the prompts of instruction data. ``metric`` is the
    name of the perplexity. ``fused`` computes head and loss in blocks of positions if the model's head
    supports it.
    """

    metric: str = "ppl"
    higher_is_better: bool = False
    fused: bool = True

    def inputs(self, model: nn.Module, batch: Batch) -> dict[str, np.ndarray]:
        return {**decoder_arrays(batch), "targets": batch["labels"][:, 1:].flatten()}

    def loss_of(self, model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
        called, targets_N = decoder_call(inputs), inputs["targets"]
        if (parts := split_head(model) if self.fused else None) is not None:
            return head_loss(_hidden(parts.body, called), parts.head, targets_N)
        return F.cross_entropy(_next_logits(model, called), targets_N)

    def weight(self, batch: Batch) -> int:
        return int((batch["labels"][:, 1:] != -100).sum())

    def logits_and_labels(self, model: nn.Module, batch: Batch, device: str) -> tuple[Tensor, Tensor]:
        output: Any = model(**decoder_inputs(batch, device))
        # Position t predicts token t + 1, so the last position has no target.
        labels_BT = np.pad(batch["labels"][:, 1:], ((0, 0), (0, 1)), constant_values=-100)
        return output.logits.flatten(0, 1), _tensor(labels_BT, device).flatten()

    def rows(self, model: nn.Module, batch: Batch, device: str) -> list[Row]:
        targets_N = _targets(batch, device)
        loss_N, right_N = self._scores(model, batch, targets_N, device)
        shape = (len(batch["index"]), -1)
        loss_BT, right_BT = loss_N.view(shape), right_N.view(shape)
        predicted_B = (targets_N != -100).view(shape).sum(1).tolist()
        columns = zip(
            batch["index"].tolist(),
            loss_BT.sum(1).tolist(),
            predicted_B,
            right_BT.sum(1).tolist(),
            strict=True,
        )
        return [dict(zip(("index", "loss", "tokens", "right"), values, strict=True)) for values in columns]

    def _scores(
        self, model: nn.Module, batch: Batch, targets_N: Tensor, device: str
    ) -> tuple[Tensor, Tensor]:
        """Loss in nats of each target (0 for padding), and whether the target has the largest logit."""
        if (parts := split_head(model) if self.fused else None) is not None:
            return head_scores(_hidden(parts.body, decoder_inputs(batch, device)), parts.head, targets_N)
        logits_NV = _next_logits(model, decoder_inputs(batch, device))
        return F.cross_entropy(logits_NV, targets_N, reduction="none"), logits_NV.argmax(-1) == targets_N

    def metrics(self, rows: list[Row]) -> dict[str, float]:
        return _token_metrics(rows, self.metric)

    def plain(self) -> Objective:
        return replace(self, fused=False)


@dataclass(frozen=True)
class SequenceToSequence(LossOfInputs):
    """Cross entropy of each target token of an encoder-decoder that reads the source and the target so far.

    Perplexity = exp(total nats / target tokens). Labels of a batch are the target tokens (B, S), −100 for
    padding; the model shifts them to the decoder's input.
    """

    metric: str = "ppl"
    higher_is_better: bool = False

    def inputs(self, model: nn.Module, batch: Batch) -> dict[str, np.ndarray]:
        return {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}

    def loss_of(self, model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
        return F.cross_entropy(_decoder_logits(model, inputs), inputs["labels"].flatten())

    def weight(self, batch: Batch) -> int:
        return int((batch["labels"] != -100).sum())

    def logits_and_labels(self, model: nn.Module, batch: Batch, device: str) -> tuple[Tensor, Tensor]:
        inputs = on_device(self.inputs(model, batch), device)
        return _decoder_logits(model, inputs), inputs["labels"].flatten()

    def rows(self, model: nn.Module, batch: Batch, device: str) -> list[Row]:
        logits_NV, labels_N = self.logits_and_labels(model, batch, device)
        shape = batch["labels"].shape
        loss_B = F.cross_entropy(logits_NV, labels_N, reduction="none").view(shape).sum(1)
        right_B = (logits_NV.argmax(-1) == labels_N).view(shape).sum(1)
        tokens_B = (labels_N != -100).view(shape).sum(1)
        columns = (batch["index"].tolist(), loss_B.tolist(), tokens_B.tolist(), right_B.tolist())
        names = ("index", "loss", "tokens", "right")
        return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]

    def metrics(self, rows: list[Row]) -> dict[str, float]:
        return _token_metrics(rows, self.metric)

    def plain(self) -> Objective:
        return self


OBJECTIVES: dict[str, Objective] = {
    "classification": Classification(),
    "language-modelling": LanguageModelling(),
    "sequence-to-sequence": SequenceToSequence(),
    "instruction-following": LanguageModelling(metric="completion_ppl"),
    "question-answering": QuestionAnswering(),
    "probing": Probing(),
    "masked-probing": MaskedProbing(),
}


def macro_f1(labels_N: np.ndarray, predictions_N: np.ndarray) -> float:
    """Mean over classes of F1 = 2·tp / (labels + predictions); classes that occur in either count."""
    scores = []
    for number in np.union1d(labels_N, predictions_N):
        is_label_N, is_predicted_N = labels_N == number, predictions_N == number
        scores.append(2 * (is_label_N & is_predicted_N).sum() / (is_label_N.sum() + is_predicted_N.sum()))
    return float(np.mean(scores))


def matthews(labels_N: np.ndarray, predictions_N: np.ndarray) -> float:
    """Matthews' correlation of classes, in [−1, 1]: R_K of Gorodkin (2004), *Comput. Biol. Chem.* 28, 367.

    0 if all labels, or all predictions, are one class.
    """
    classes = np.union1d(labels_N, predictions_N)
    labels_K = np.array([(labels_N == number).sum() for number in classes], dtype=float)
    predictions_K = np.array([(predictions_N == number).sum() for number in classes], dtype=float)
    count, right = float(len(labels_N)), float((labels_N == predictions_N).sum())
    spread = (count**2 - predictions_K @ predictions_K) * (count**2 - labels_K @ labels_K)
    return float((right * count - labels_K @ predictions_K) / math.sqrt(spread)) if spread else 0.0


def _token_metrics(rows: list[Row], name: str) -> dict[str, float]:
    """Loss in nats per token, perplexity as ``name``, and the share of tokens with the largest logit."""
    tokens = sum(row["tokens"] for row in rows)
    loss = sum(row["loss"] for row in rows) / tokens
    accuracy = sum(row["right"] for row in rows) / tokens
    return {"loss": loss, name: math.exp(min(loss, 700.0)), "token_acc": accuracy}


def _decoder_ids(model: nn.Module, labels_BS: Tensor) -> Tensor:
    """Input of the decoder (B, S): the labels after a start token, shifted by the model's own rule."""
    inner: Any = model
    if hasattr(inner, "get_base_model"):
        inner = inner.get_base_model()
    shifted: Tensor = inner.prepare_decoder_input_ids_from_labels(labels_BS)
    return shifted


def _decoder_logits(model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    """fp32 logits of an encoder-decoder at all target tokens (B · S, V)."""
    output: Any = model(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        decoder_input_ids=_decoder_ids(model, inputs["labels"]),
        use_cache=False,
    )
    return output.logits.float().flatten(0, 1)


def _logits(model: nn.Module, batch: Batch, device: str) -> Tensor:
    return _classes(model, on_device(_classifier_arrays(model, batch), device))


def _classifier_arrays(model: nn.Module, batch: Batch) -> dict[str, np.ndarray]:
    """Inputs of a classifier, and the position of the last token if it reads that."""
    arrays = encoder_arrays(model, batch)
    if last_token_head(model) is not None:
        arrays["last"] = last_positions(batch["attention_mask"])
    return arrays


def _classes(model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    """fp32 logits of the classes (B, C)."""
    called = dict(inputs)
    with read_positions(model, called.pop("last", None)):
        output: Any = model(**called)
    return output.logits.float()


def _targets(batch: Batch, device: str) -> Tensor:
    """Target tokens (B · (T − 1),); −100 for padding."""
    return _tensor(batch["labels"][:, 1:], device).flatten()


def _next_logits(model: nn.Module, called: dict[str, Any]) -> Tensor:
    """fp32 logits of all positions but the last, (B · (T − 1), V)."""
    output: Any = model(**called)
    return output.logits[:, :-1].float().flatten(0, 1)


def _hidden(body: nn.Module, called: dict[str, Any]) -> Tensor:
    """Hidden states of all positions but the last, (B · (T − 1), D)."""
    output: Any = body(**called)
    return output.last_hidden_state[:, :-1].flatten(0, 1)
