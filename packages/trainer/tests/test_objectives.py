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


def test_evaluation_preserves_training_mode_and_random_state(make) -> None:
    model = make("classification").train()
    before = torch.get_rng_state()
    first = evaluate(model, [batch(1), batch(0)], OBJECTIVES["classification"], "cpu")
    assert model.training and torch.equal(torch.get_rng_state(), before)
    assert [row["index"] for row in first.rows] == list(range(16))
    assert first.metrics == evaluate(model, [batch(0), batch(1)], OBJECTIVES["classification"], "cpu").metrics
