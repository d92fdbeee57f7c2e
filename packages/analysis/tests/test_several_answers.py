"""Dialogues with a row for each answer: the dialogue is the example of every metric."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from bitrank_analysis import AnalysisError, load_study, open_store
from bitrank_analysis.corpus_scores import bleu
from bitrank_analysis.evidence import gather
from bitrank_analysis.metrics import METRICS
from bitrank_analysis.report.side_by_side import generated_texts
from bitrank_analysis.statistics import compare

IDS = ["25", "25", "6", "6", "6", "7"]
SHARES = ["exact_match", "token_f1", "rouge1", "rouge2", "rougeL"]


def bleu_counts(matches: list[int]) -> list[list[int]]:
    return [[9, 9, right, right // 2, right // 3, 1, 9, 8, 7, 6] for right in matches]


def add_run(maker: Any, config: str, rights: list[int], ids: list[str]) -> None:
    columns: dict[str, Any] = {key: [float(right > 4) for right in rights] for key in SHARES}
    columns |= {"bleu_counts": bleu_counts(rights), "chrf_counts": [[6, 6, right] * 6 for right in rights]}
    losses = {"id": ids, "loss": [9.0 - right for right in rights], "tokens": [3] * len(ids)}
    maker.run(
        config,
        task="chat",
        predictions={**losses, **columns},
        metrics={"eval/completion_ppl": 4.0, "model/mib": 1.0},
        tags={"kind": "instruction-following", "metric": "completion_ppl"},
    )


@pytest.mark.parametrize("key", SHARES)
def test_the_share_of_a_dialogue_is_the_mean_of_its_answers(key: str) -> None:
    rows = pd.DataFrame({"id": IDS, key: [1.0, 0.0, 1.0, 1.0, 0.0, 0.0]})
    found = METRICS[key].examples.read(rows, "a run")
    assert list(found.index) == ["25", "6", "7"]
    assert found["value"].to_numpy() == pytest.approx([1 / 2, 2 / 3, 0.0])
    assert list(found["weight"]) == [1.0] * 3 and list(found["key"]) == [2.0, 3.0, 1.0]


def test_counts_of_a_dialogue_are_the_sums_of_those_of_its_answers() -> None:
    counts = bleu_counts([5, 6, 7, 8, 9, 4])
    frame = METRICS["bleu"].examples.read(pd.DataFrame({"id": IDS, "bleu_counts": counts}), "a run")
    assert len(frame) == 3
    assert frame["value"].mean() == pytest.approx(float(bleu(np.array(counts, dtype=float).sum(axis=0))))
    together = pd.DataFrame({"id": ["25", "6", "7"], "bleu_counts": [
        np.sum(counts[:2], axis=0).tolist(), np.sum(counts[2:5], axis=0).tolist(), counts[5]
    ]})  # fmt: skip
    expected = METRICS["bleu"].examples.read(together, "a run")
    assert frame["value"].to_list() == expected["value"].to_list()


def test_dialogues_are_compared_on_every_metric_of_their_texts(maker: Any, tmp_path: Path) -> None:
    ids = [f"d{number // 2}" for number in range(40)]
    add_run(maker, "B-FP", [8, 3, 9, 7] * 10, ids)
    add_run(maker, "B-Q4", [2, 3, 9, 1] * 10, ids)
    evidence = gather(load_study(open_store(str(tmp_path))), "chat")
    assert "comparisons on further metrics" not in evidence.gaps
    rows = evidence.further.set_index("metric")
    assert set(rows.index) == {*SHARES, "bleu", "chrf"} and set(rows["n"]) == {20}
    exact = rows.loc["exact_match"]
    assert exact["test"] == "normal over examples" and exact["difference"] == pytest.approx(-0.5)
    assert exact["low"] < -0.5 < exact["high"] < 0 and np.isnan(exact["discordant_gain"])


def test_runs_with_other_numbers_of_answers_are_not_paired(maker: Any, tmp_path: Path) -> None:
    add_run(maker, "B-FP", [8, 3, 9, 7, 5, 5], IDS)
    add_run(maker, "B-Q4", [8, 3, 9, 7, 5, 5], ["25", "25", "25", "6", "6", "7"])
    study = load_study(open_store(str(tmp_path)))
    with pytest.raises(AnalysisError, match="2 ids have other numbers of answers"):
        compare(study, "chat", metric="exact_match")


def test_the_report_shows_every_answer_of_a_dialogue() -> None:
    frame = pd.DataFrame({
        "id": ["25", "25", "6"], "text": ["p1", "p2", "p3"],
        "reference_text": ["r1", "r2", "r3"], "prediction_text": ["a", "b", "c"],
    })  # fmt: skip
    shown = generated_texts({"A": frame, "B": frame.assign(prediction_text=["a", "x", "c"])})
    assert shown.rows[0] == ("p2", "r2", "b", "x") and len(shown.rows) == 3
    assert shown.sentence.startswith("Greedy texts of 3 answers; all arms write the same text on 2.")
