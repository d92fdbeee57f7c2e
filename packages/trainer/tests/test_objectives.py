"""Losses and metrics equal PyTorch's and plain arithmetic."""

from __future__ import annotations

import math

import pytest
import torch
from bitrank_trainer import OBJECTIVES, evaluate
from tiny_problem import batch
from torch.nn import functional as F


def test_classification_rows_equal_the_loss(make) -> None:
    model, objective, data = make("classification").eval(), OBJECTIVES["classification"], batch(0)
    with torch.no_grad():
        rows = objective.rows(model, data, "cpu")
        logits = model(torch.from_numpy(data["input_ids"]), torch.from_numpy(data["attention_mask"])).logits
        loss = float(objective.loss(model, data, "cpu"))
    assert objective.metrics(rows)["loss"] == pytest.approx(loss, rel=1e-6)
    assert [row["prediction"] for row in rows] == logits.argmax(-1).tolist()
    assert objective.metrics(rows)["acc"] == pytest.approx(
        float((logits.argmax(-1) == torch.from_numpy(data["labels"])).float().mean())
    )
    assert [row["tokens"] for row in rows] == data["attention_mask"].sum(1).tolist()


def test_perplexity_is_exp_of_nats_per_predicted_token(make) -> None:
    model, objective, data = make("lm").eval(), OBJECTIVES["language-modelling"], batch(0, lm=True)
    with torch.no_grad():
        rows = objective.rows(model, data, "cpu")
        logits = model(torch.from_numpy(data["input_ids"])).logits[:, :-1]
        targets = torch.from_numpy(data["labels"])[:, 1:]
        expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100)
    metrics = objective.metrics(rows)
    assert metrics["loss"] == pytest.approx(float(expected), rel=1e-6)
    assert metrics["ppl"] == pytest.approx(math.exp(float(expected)), rel=1e-6)
    assert sum(row["tokens"] for row in rows) == int((targets != -100).sum())


@pytest.mark.parametrize(
    ("kind", "model"), [("classification", "classification"), ("language-modelling", "lm")]
)
def test_logits_and_labels_give_the_loss(make, kind: str, model: str) -> None:
    objective, data = OBJECTIVES[kind], batch(0, lm=model == "lm")
    with torch.no_grad():
        logits_NC, labels_N = objective.logits_and_labels(make(model).eval(), data, "cpu")
        loss = float(objective.loss(make(model).eval(), data, "cpu"))
    assert len(logits_NC) == len(labels_N) and int((labels_N >= 0).sum()) == objective.weight(data)
    assert float(F.cross_entropy(logits_NC, labels_N)) == pytest.approx(loss, rel=1e-6)


def test_only_labelled_tokens_of_instructions_are_predicted(make) -> None:
    """Loss, weight and rows equal those of plain PyTorch on the tokens of answers, fused and plain."""
    model, data = make("lm").eval(), dict(batch(0, lm=True))
    data["labels"] = data["labels"].copy()
    data["labels"][:, :4] = -100
    data["labels"][0, 6:] = -100  # a turn of the user after the answer
    with torch.no_grad():
        logits = model(torch.from_numpy(data["input_ids"])).logits[:, :-1].flatten(0, 1)
        targets = torch.from_numpy(data["labels"])[:, 1:].flatten()
        expected = float(F.cross_entropy(logits, targets, ignore_index=-100))
        for objective in (OBJECTIVES["instruction-following"], OBJECTIVES["instruction-following"].plain()):
            rows = objective.rows(model, data, "cpu")
            assert float(objective.loss(model, data, "cpu")) == pytest.approx(expected, rel=1e-5)
            assert (
                objective.weight(data) == int((targets != -100).sum()) == sum(row["tokens"] for row in rows)
            )
            metrics = objective.metrics(rows)
            assert metrics["completion_ppl"] == pytest.approx(math.exp(expected), rel=1e-5)
            right = (logits.argmax(-1) == targets).sum() / objective.weight(data)
            assert metrics["token_acc"] == pytest.approx(float(right)) and "ppl" not in metrics


def test_segments_of_a_pair_reach_models_that_tell_them_apart() -> None:
    """BERT's logits equal those of transformers with ``token_type_ids``; a model of one segment gets none."""
    import numpy as np
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 8}
    ids, types = np.asarray([[1, 2, 3, 4]]), np.asarray([[0, 0, 1, 1]])
    data = {"input_ids": ids, "attention_mask": np.ones_like(ids), "labels": np.asarray([0])}
    for segments in (2, 1):
        torch.manual_seed(0)
        model = BertForSequenceClassification(
            BertConfig(**sizes, vocab_size=10, type_vocab_size=segments)
        ).eval()
        given = torch.from_numpy(types) if segments == 2 else None
        with torch.no_grad():
            expected = model(torch.from_numpy(ids), token_type_ids=given).logits
            found, _ = OBJECTIVES["classification"].logits_and_labels(
                model, {**data, "token_type_ids": types}, "cpu"
            )
            without, _ = OBJECTIVES["classification"].logits_and_labels(model, data, "cpu")
        assert torch.allclose(found, expected, atol=1e-6)
        assert torch.equal(found, without) == (segments == 1)


def test_evaluation_preserves_training_mode_and_random_state(make) -> None:
    model = make("classification").train()
    before = torch.get_rng_state()
    first = evaluate(model, [batch(1), batch(0)], OBJECTIVES["classification"], "cpu")
    assert model.training and torch.equal(torch.get_rng_state(), before)
    assert [row["index"] for row in first.rows] == list(range(16))
    assert first.metrics == evaluate(model, [batch(0), batch(1)], OBJECTIVES["classification"], "cpu").metrics
