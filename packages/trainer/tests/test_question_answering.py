"""Start and end logits: losses, spans and scores, with positions that no answer can have excluded."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from bitrank_trainer import OBJECTIVES, evaluate
from bitrank_trainer.question_answering import best_spans
from torch import Tensor, nn
from torch.nn import functional as F

CONTEXT, START, END = 1, 2, 4
OBJECTIVE = OBJECTIVES["question-answering"]


class TinySpans(nn.Module):
    """Two logits per token; records whether it was given segments."""

    def __init__(self, segments: int = 0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(20, 8)
        self.kinds = nn.Embedding(2, 8)
        self.qa_outputs = nn.Linear(8, 2)
        self.config = SimpleNamespace(type_vocab_size=segments)
        self.segments_BT: Tensor | None = None

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Any:
        self.segments_BT = token_type_ids
        logits_BT2 = self.qa_outputs(self.embedding(input_ids))
        return SimpleNamespace(start_logits=logits_BT2[..., 0], end_logits=logits_BT2[..., 1])


def batch(padding: int = 0) -> dict[str, np.ndarray]:
    """Two windows of 7 and 5 tokens: two of the question, then the context; the second has no answer."""
    ids_BT = np.pad(np.random.default_rng(0).integers(1, 20, (2, 7)), ((0, 0), (0, padding)))
    mask_BT = np.zeros_like(ids_BT)
    mask_BT[0, :7] = mask_BT[1, :5] = 1
    labels_BT = np.full_like(ids_BT, -100)
    labels_BT[0, :7] = [0, 0, CONTEXT, CONTEXT | START, CONTEXT, CONTEXT | END, CONTEXT]
    labels_BT[1, :5] = [START | END, 0, CONTEXT, CONTEXT, CONTEXT]
    ids_BT[mask_BT == 0] = 0
    return {"input_ids": ids_BT, "attention_mask": mask_BT, "labels": labels_BT, "index": np.arange(2)}


def scored(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    scores = ({"exact_match": row["index"], "token_f1": 0.25 + row["index"] / 2} for row in rows)
    return [{**row, "windows": 1, **found} for row, found in zip(rows, scores, strict=True)]


def test_the_loss_is_the_mean_of_both_cross_entropies_over_possible_positions() -> None:
    model, data = TinySpans(), batch()
    with torch.no_grad():
        logits_BT2 = model.qa_outputs(model.embedding(torch.from_numpy(data["input_ids"])))
        losses = []
        for row, possible, places in ((0, [0, 2, 3, 4, 5, 6], (2, 4)), (1, [0, 2, 3, 4], (0, 0))):
            for output, place in enumerate(places):
                logits_1P = logits_BT2[row, possible, output][None]
                losses.append(float(F.cross_entropy(logits_1P, torch.tensor([place]))))
        loss = float(OBJECTIVE.loss(model, data, "cpu"))
        rows = OBJECTIVE.rows(model, data, "cpu")
    assert loss == pytest.approx(np.mean(losses), rel=1e-5)
    assert [row["loss"] for row in rows] == pytest.approx(
        [np.mean(losses[:2]), np.mean(losses[2:])], rel=1e-5
    )
    assert OBJECTIVE.weight(data) == 2


def test_logits_and_labels_have_two_rows_per_sequence_and_give_the_loss() -> None:
    model, data = TinySpans(), batch()
    with torch.no_grad():
        logits_NT, labels_N = OBJECTIVE.logits_and_labels(model, data, "cpu")
        loss = float(OBJECTIVE.loss(model, data, "cpu"))
    assert logits_NT.shape == (4, 7) and labels_N.tolist() == [3, 0, 5, 0]
    assert float(F.cross_entropy(logits_NT, labels_N)) == pytest.approx(loss)
    assert torch.isfinite(logits_NT).all()


def test_padding_changes_no_loss_and_no_span() -> None:
    model = TinySpans()
    with torch.no_grad():
        short, long = (OBJECTIVE.rows(model, batch(padding), "cpu") for padding in (0, 5))
    for one, other in zip(short, long, strict=True):
        assert one == pytest.approx(other, rel=1e-6)


def test_the_best_span_is_that_of_a_search_over_all_spans_of_the_context() -> None:
    torch.manual_seed(1)
    logits_2BT = torch.randn(2, 40, 50)
    is_context_BT = torch.zeros(40, 50, dtype=torch.bool)
    is_context_BT[:, 3:45] = True
    score_B, start_B, end_B = best_spans(logits_2BT, is_context_BT)
    for row in range(40):
        spans = [(start, end) for start in range(3, 45) for end in range(start, min(start + 30, 45))]
        sums = {span: float(logits_2BT[0, row, span[0]] + logits_2BT[1, row, span[1]]) for span in spans}
        best = max(sums, key=sums.__getitem__)
        assert (int(start_B[row]), int(end_B[row])) == best
        assert float(score_B[row]) == pytest.approx(sums[best])


def test_a_span_has_at_most_thirty_tokens() -> None:
    logits_2BT = torch.zeros(2, 1, 60)
    logits_2BT[0, 0, 2] = logits_2BT[1, 0, 32] = 5.0  # together they would be 31 tokens
    _, start_B, end_B = best_spans(logits_2BT, torch.ones(1, 60, dtype=torch.bool))
    assert int(end_B) - int(start_B) < 30
    logits_2BT[1, 0, 31] = 5.0
    _, start_B, end_B = best_spans(logits_2BT, torch.ones(1, 60, dtype=torch.bool))
    assert (int(start_B), int(end_B)) == (2, 31)


@pytest.mark.parametrize("kinds", [0, 2])
def test_models_with_two_segments_get_those_of_the_batch(kinds: int) -> None:
    model = TinySpans(kinds)
    data = batch(padding=1)
    data["token_type_ids"] = np.asarray([[0, 0, 1, 1, 1, 1, 1, 0], [0, 0, 1, 1, 1, 0, 0, 0]])
    OBJECTIVE.loss(model, data, "cpu")
    if not kinds:
        assert model.segments_BT is None
        return
    assert model.segments_BT is not None
    assert model.segments_BT.tolist() == data["token_type_ids"].tolist()


def test_metrics_are_means_over_merged_rows() -> None:
    found = evaluate(TinySpans(), [batch()], OBJECTIVE, "cpu", merge=scored)
    assert found.metrics["exact_match"] == 0.5 and found.metrics["token_f1"] == 0.5
    assert found.metrics["loss"] == pytest.approx(np.mean([row["loss"] for row in found.rows]))
    assert all("exact_match" in row for row in found.rows)


def test_training_learns_the_answer_spans_of_a_batch() -> None:
    model, data = TinySpans(), batch()
    optimizer = torch.optim.Adam(model.parameters(), 0.1)
    for _ in range(60):
        optimizer.zero_grad()
        OBJECTIVE.loss(model, data, "cpu").backward()
        optimizer.step()
    first, second = OBJECTIVE.rows(model, data, "cpu")
    assert (first["start"], first["end"]) == (3, 5) and first["score"] > first["null"]
    assert second["null"] > second["score"]
