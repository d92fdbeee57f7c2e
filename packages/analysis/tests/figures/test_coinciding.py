"""Equal curves are drawn once, under the names of all their arms."""

from __future__ import annotations

import pandas as pd
from bitrank_analysis.figures.coinciding import drawn_once, labels_of
from bitrank_analysis.figures.theme import STYLE, colour

CURVES = pd.DataFrame(
    {
        "config": ["B-FP", "B-FP", "B-Q4", "B-Q4", "Joint-1", "Joint-1"],
        "layer": [0, 1, 1, 0, 0, 1],
        "rank": [8.0, 8.0, 8.0, 8.0, 4.0, 5.0],
    }
)


def test_equal_curves_share_one_label() -> None:
    labels = labels_of(CURVES, "layer", "rank", ["B-FP", "B-Q4", "Joint-1"])
    assert labels == {"B-FP": "B-FP and B-Q4", "Joint-1": "Joint-1"}
    drawn = drawn_once(CURVES, labels)
    assert list(drawn["config"]) == ["B-FP and B-Q4"] * 2 + ["Joint-1"] * 2


def test_shared_curve_has_the_colour_of_its_first_arm() -> None:
    labels = {"B-FP": "B-FP and B-Q4", "Joint-1": "Joint-1"}
    scale = colour(list(labels), labels=labels).to_dict()["scale"]
    assert scale == {"domain": ["B-FP and B-Q4", "Joint-1"], "range": [STYLE["B-FP"][0], STYLE["Joint-1"][0]]}
