"""Rank of the token that continues a prompt, and its cross entropy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from bitrank_trainer import OBJECTIVES
from bitrank_trainer.probing import ranks
from torch.nn import functional as F
from transformers import BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM

OBJECTIVE = OBJECTIVES["probing"]


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=30)).eval().requires_grad_(False)


def batch(padding: int = 0) -> dict[str, np.ndarray]:
    ids_BT = np.pad(np.random.default_rng(0).integers(1, 30, (4, 6)), ((0, 0), (0, padding)))
    mask_BT = np.zeros_like(ids_BT)
    for row, length in enumerate((6, 5, 3, 1)):
        mask_BT[row, :length] = 1
    labels_B = np.asarray([3, 29, 0, 11])
    return {
        "input_ids": ids_BT * mask_BT,
        "attention_mask": mask_BT,
        "labels": labels_B,
        "index": np.arange(4),
    }


def test_logits_are_those_after_the_last_token_of_each_prompt(model: LlamaForCausalLM) -> None:
    data = batch()
    logits_BV, labels_B = OBJECTIVE.logits_and_labels(model, data, "cpu")
    assert labels_B.tolist() == data["labels"].tolist()
    for row, length in enumerate((6, 5, 3, 1)):
        alone_V = model(torch.from_numpy(data["input_ids"][row : row + 1, :length])).logits[0, -1]
        assert torch.allclose(logits_BV[row], alone_V, atol=1e-5)


@pytest.mark.parametrize("padding", [0, 3])
def test_fused_and_plain_rows_agree_and_padding_changes_nothing(
    model: LlamaForCausalLM, padding: int
) -> None:
    fused = OBJECTIVE.rows(model, batch(padding), "cpu")
    plain = OBJECTIVE.plain().rows(model, batch(), "cpu")
    for one, other in zip(fused, plain, strict=True):
        assert one == pytest.approx(other, rel=1e-4)
    loss = float(OBJECTIVE.loss(model, batch(padding), "cpu"))
    assert loss == pytest.approx(OBJECTIVE.metrics(plain)["loss"], rel=1e-4)
    assert OBJECTIVE.weight(batch()) == 4


def test_ranks_are_places_in_a_sort_and_ties_go_to_the_lower_token() -> None:
    logits_BV = torch.tensor([[0.5, 2.0, 2.0, -1.0]]).repeat(4, 1)
    assert ranks(logits_BV, torch.arange(4)).tolist() == [3, 1, 2, 4]
    assert int(logits_BV[0].argmax()) == 1


def test_metrics_are_shares_of_first_ranks_and_means_of_reciprocal_ranks(model: LlamaForCausalLM) -> None:
    rows = OBJECTIVE.rows(model, batch(), "cpu")
    found = OBJECTIVE.metrics([{**row, "rank": rank, "reciprocal_rank": 1 / rank} for row, rank in
                               zip(rows, (1, 2, 4, 1), strict=True)])  # fmt: skip
    assert found["p_at_1"] == 0.5 and found["mrr"] == pytest.approx((1 + 0.5 + 0.25 + 1) / 4)
    for row in rows:
        assert row["reciprocal_rank"] == 1 / row["rank"] and (row["rank"] == 1) == (
            row["prediction"] == row["label"]
        )


def test_the_gradient_of_the_fused_loss_is_that_of_the_plain_one(model: LlamaForCausalLM) -> None:
    weight = model.model.layers[0].mlp.down_proj.weight.requires_grad_(True)
    found = []
    for objective in (OBJECTIVE, OBJECTIVE.plain()):
        weight.grad = None
        objective.loss(model, batch(), "cpu").backward()
        found.append(weight.grad.clone())
    weight.requires_grad_(False)
    assert found[0].abs().sum() > 0 and torch.allclose(*found, atol=1e-6)
    logits_BV, labels_B = OBJECTIVE.logits_and_labels(model, batch(), "cpu")
    assert float(F.cross_entropy(logits_BV, labels_B)) == pytest.approx(
        float(OBJECTIVE.loss(model, batch(), "cpu"))
    )


def test_masked_logits_are_those_at_the_mask_of_each_sequence() -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    encoder = BertForMaskedLM(BertConfig(**sizes, vocab_size=30)).eval().requires_grad_(False)
    masked, data = OBJECTIVES["masked-probing"], batch(padding=2)
    masks, objects = (4, 2, 1, 0), (3, 29, 0, 11)
    labels_BT = np.full(data["input_ids"].shape, -100)
    for row, (place, token) in enumerate(zip(masks, objects, strict=True)):
        labels_BT[row, place] = token
    rows = masked.rows(encoder, {**data, "labels": labels_BT}, "cpu")
    for row, (place, length) in enumerate(zip(masks, (6, 5, 3, 1), strict=True)):
        alone_V = encoder(torch.from_numpy(data["input_ids"][row : row + 1, :length])).logits[0, place]
        expected = float(F.cross_entropy(alone_V[None], torch.tensor([objects[row]])))
        assert rows[row]["loss"] == pytest.approx(expected, rel=1e-4) and rows[row]["label"] == objects[row]
        assert rows[row]["rank"] == int(ranks(alone_V[None], torch.tensor([objects[row]])))
    assert masked.weight({**data, "labels": labels_BT}) == 4
