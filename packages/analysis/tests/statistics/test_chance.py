"""Runs at chance level are listed, others are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bitrank_analysis import load_study, open_store
from bitrank_analysis.statistics.chance import at_chance


def test_only_the_run_at_chance_is_listed(maker, tmp_path: Path) -> None:
    maker.classifier("A", [True] * 60 + [False] * 40)
    maker.classifier("B", [True] * 52 + [False] * 48)
    maker.language_model("A", [30.0, 20.0], [10, 10], task="wiki")
    assert at_chance(load_study(open_store(str(tmp_path)))) == [
        "B movies s0 ended at chance: 52.0 % right, where naming the most frequent class is right in 50.0 %. "
        "Its training collapsed; means "
        "over seeds include it."
    ]


def test_unbalanced_classes_raise_the_chance_level(maker, tmp_path: Path) -> None:
    """80 of 100 right answers are at chance if 80 of 100 examples have the same class."""
    labels = [0] * 80 + [1] * 20
    rows = {"id": [f"e{i}" for i in range(100)], "label": labels, "loss": [0.5] * 100, "tokens": [9] * 100}
    maker.run("A", predictions={**rows, "prediction": [0] * 100}, metrics={"eval/acc": 0.8})
    maker.run("B", predictions={**rows, "prediction": labels}, metrics={"eval/acc": 1.0})
    found = at_chance(load_study(open_store(str(tmp_path))))
    assert len(found) == 1 and found[0].startswith("A movies s0 ended at chance: 80.0 %")


_RARE = np.array([0] * 190 + [1] * 10)  # 95 % of one class


@pytest.mark.parametrize(
    ("predictions", "listed"),
    [
        pytest.param([0] * 190 + [1] * 5 + [0] * 5, False, id="half of the rare class found"),
        pytest.param([0] * 200, True, id="one class everywhere"),
        pytest.param(np.random.default_rng(0).permutation(_RARE).tolist(), True, id="random"),
    ],
)
def test_classifier_that_finds_a_rare_class_is_not_at_chance(
    predictions: list[int], listed: bool, maker: Any, tmp_path: Path
) -> None:
    rows = {"id": [f"e{i}" for i in range(200)], "label": _RARE.tolist(), "prediction": predictions}
    accuracy = float((np.array(predictions) == _RARE).mean())
    maker.run(
        "A", predictions={**rows, "loss": [0.5] * 200, "tokens": [9] * 200}, metrics={"eval/acc": accuracy}
    )
    found = at_chance(load_study(open_store(str(tmp_path))))
    assert [sentence.startswith("A movies s0 ended at chance") for sentence in found] == [True] * listed
