"""Next-token accuracy: right tokens over all tokens, compared by sign flips of documents."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from bitrank_analysis import load_study, open_store
from bitrank_analysis.evidence import gather
from bitrank_analysis.metrics import METRICS
from bitrank_analysis.statistics import arms, compare

TOKENS = [100, 40, 80, 120, 60, 90, 70, 30]
RIGHT = {"B-FP": [50, 21, 41, 62, 30, 47, 33, 16], "B-Q4": [45, 20, 36, 55, 31, 40, 30, 12]}
KINDS = {
    "language-modelling": "ppl",
    "sequence-to-sequence": "ppl",
    "instruction-following": "completion_ppl",
}


def add_runs(maker: Any, kind: str) -> None:
    for config, right in RIGHT.items():
        ids = [f"d{n}" for n in range(8)]
        rows = {"id": ids, "loss": [3.0 * count for count in TOKENS], "tokens": TOKENS, "right": right}
        metrics = {f"eval/{KINDS[kind]}": 20.0, "eval/token_acc": sum(right) / sum(TOKENS), "model/mib": 1.0}
        tags = {"kind": kind, "metric": KINDS[kind]}
        maker.run(config, task="texts", predictions=rows, metrics=metrics, tags=tags)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_that_logs_token_accuracy_compares_it(kind: str, maker: Any, tmp_path: Path) -> None:
    add_runs(maker, kind)
    further = gather(load_study(open_store(str(tmp_path))), "texts").further.set_index("metric")
    row = further.loc["token_acc"]
    assert row["candidate_quality"] == pytest.approx(sum(RIGHT["B-Q4"]) / sum(TOKENS))
    assert row["baseline_quality"] == pytest.approx(sum(RIGHT["B-FP"]) / sum(TOKENS))
    assert row["margin"] == 0.01 and row["low"] < row["difference"] < row["high"]


def test_the_p_value_is_the_share_of_sign_flips_with_a_difference_as_large(
    maker: Any, tmp_path: Path
) -> None:
    add_runs(maker, "language-modelling")
    study = load_study(open_store(str(tmp_path)))
    (row,) = compare(study, "texts", ["B-FP"], metric="token_acc").to_dict("records")
    gaps = np.subtract(RIGHT["B-Q4"], RIGHT["B-FP"])
    flipped = [abs(np.dot(signs, gaps)) for signs in itertools.product((-1, 1), repeat=8)]
    assert row["p"] == pytest.approx(np.mean(np.array(flipped) >= abs(gaps.sum())))
    assert row["difference"] == pytest.approx(gaps.sum() / sum(TOKENS))
    assert row["test"] == "sign flips of documents"


def test_windows_of_a_document_are_one_example_weighed_by_its_tokens() -> None:
    rows = pd.DataFrame({"id": ["a", "b", "a"], "right": [3, 5, 4], "tokens": [10, 10, 20]})
    frame = METRICS["token_acc"].examples.read(rows, "a run")
    assert frame["value"].to_list() == [7, 5] and frame["weight"].to_list() == [30, 10]


def test_an_arm_that_is_ranked_by_token_accuracy_has_its_interval(maker: Any, tmp_path: Path) -> None:
    for config, right in RIGHT.items():
        rows = {"id": [f"d{n}" for n in range(8)], "tokens": TOKENS, "right": right}
        figures = {"eval/token_acc": sum(right) / sum(TOKENS), "model/mib": 1.0}
        tags = {"kind": "language-modelling", "metric": "token_acc"}
        maker.run(config, task="texts", predictions=rows, metrics=figures, tags=tags)
    table = arms(load_study(open_store(str(tmp_path))), "texts").set_index("config")
    for config, right in RIGHT.items():
        assert table.loc[config, "quality"] == pytest.approx(sum(right) / sum(TOKENS))
        assert 0 < table.loc[config, "low"] < table.loc[config, "quality"] < table.loc[config, "high"] < 1
