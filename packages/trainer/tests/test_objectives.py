"""Losses and metrics equal PyTorch's and plain arithmetic."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from bitrank_trainer import OBJECTIVES, evaluate
from bitrank_trainer.memory.micro_batches import longest_sequence, micro_batches
from bitrank_trainer.objectives import macro_f1, matthews
from hypothesis import given
from hypothesis import strategies as st
from tiny_problem import batch
from torch.nn import functional as F
from transformers import BartConfig, BartForConditionalGeneration, T5Config, T5ForConditionalGeneration


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


CLASSES = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30)


@given(CLASSES)
def test_macro_f1_and_matthews_equal_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    labels, predictions = np.array(pairs).T
    expected = metrics.f1_score(labels, predictions, average="macro")
    assert macro_f1(labels, predictions) == pytest.approx(expected, abs=1e-12)
    assert matthews(labels, predictions) == pytest.approx(
        metrics.matthews_corrcoef(labels, predictions), abs=1e-12
    )


def encoder_decoder(name: str) -> Any:
    torch.manual_seed(0)
    ids = {"vocab_size": 20, "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 2}
    if name == "t5":
        sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
        return T5ForConditionalGeneration(T5Config(**ids, **sizes)).eval()
    stacks = {"encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 16}
    stacks |= {key.replace("encoder", "decoder"): size for key, size in stacks.items()}
    config = BartConfig(**ids, **stacks, d_model=16, max_position_embeddings=16)
    return BartForConditionalGeneration(config).eval()


def pair_batch() -> dict[str, np.ndarray]:
    """Four sources of 7 tokens and targets of 5, both padded."""
    data = batch(0, size=4, length=7)
    labels = np.random.default_rng(1).integers(3, 20, (4, 5))
    labels[1, 3:], labels[2, 1:] = -100, -100
    return {**data, "labels": labels}


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_sequence_to_sequence_loss_equals_the_models_own(name: str) -> None:
    model, objective, data = encoder_decoder(name), OBJECTIVES["sequence-to-sequence"], pair_batch()
    tensors = {key: torch.from_numpy(data[key]) for key in ("input_ids", "attention_mask", "labels")}
    with torch.no_grad():
        expected = float(model(**tensors).loss)
        assert float(objective.loss(model, data, "cpu")) == pytest.approx(expected, rel=1e-5)
        rows = objective.rows(model, data, "cpu")
    assert [row["tokens"] for row in rows] == [5, 3, 1, 5] and objective.weight(data) == 14
    metrics = objective.metrics(rows)
    assert metrics["loss"] == pytest.approx(expected, rel=1e-5)
    assert metrics["ppl"] == pytest.approx(math.exp(expected), rel=1e-5)


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_a_pair_alone_has_the_loss_of_its_row_in_a_batch(name: str) -> None:
    model, objective, data = encoder_decoder(name), OBJECTIVES["sequence-to-sequence"], pair_batch()
    length, targets = int(data["attention_mask"][0].sum()), int((data["labels"][2] != -100).sum())
    for row, width, target in ((0, length, 5), (2, 7, targets)):
        alone = {key: value[row : row + 1] for key, value in data.items()}
        alone["input_ids"], alone["attention_mask"] = (
            alone[key][:, :width] for key in ("input_ids", "attention_mask")
        )
        alone["labels"] = alone["labels"][:, :target]
        with torch.no_grad():
            whole, single = objective.rows(model, data, "cpu")[row], objective.rows(model, alone, "cpu")[0]
        assert single["loss"] == pytest.approx(whole["loss"], rel=1e-4)


def test_micro_batches_keep_targets_of_another_width() -> None:
    data = pair_batch()
    data["attention_mask"][:] = 1
    data["attention_mask"][2:, 3:] = 0
    model, objective = encoder_decoder("t5"), OBJECTIVES["sequence-to-sequence"]
    parts = list(micro_batches(data, 14))
    assert [part["input_ids"].shape for part in parts] == [(2, 7), (2, 3)]
    with torch.no_grad():
        whole = float(objective.loss(model, data, "cpu")) * objective.weight(data)
        sums = [float(objective.loss(model, part, "cpu")) * objective.weight(part) for part in parts]
    assert sum(sums) == pytest.approx(whole, rel=1e-5)


def test_the_longest_sequence_has_a_target_of_its_length() -> None:
    found = longest_sequence(iter([copy.deepcopy(pair_batch())]), 12)
    assert found["input_ids"].shape == found["labels"].shape == (1, 12)
    assert OBJECTIVES["sequence-to-sequence"].weight(found) == 12
