"""The last line of the verdict counts the seeds that the comparisons cover."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from bitrank_analysis.report.verdict import _how_sure
from bitrank_analysis.statistics.compare import compare_arms
from bitrank_analysis.statistics.examples import ArmResults

_BOTH = "tests and intervals cover variation of examples and of seeds (up to 2 were trained"


@pytest.mark.parametrize(
    ("seeds", "covered"),
    [
        ([(0,), (0,)], "one seed was trained, so the variation between seeds is not known"),
        (
            [(0, 1), (1, 2)],
            "the arms of each pair have one seed in common, so the variation between seeds is not known",
        ),
        ([(0, 1), (0, 1)], f"{_BOTH})"),
        ([(0, 1), (0, 1), (1, 2)], f"{_BOTH}; pairs with one common seed: examples alone)"),
        (
            [(0, 1, 2), (0, 1)],
            "tests and intervals cover variation of examples and of seeds (up to 2 in common)",
        ),
    ],
)
def test_how_sure_counts_the_seeds_that_both_arms_of_a_pair_have(
    seeds: list[tuple[int, ...]], covered: str
) -> None:
    random = np.random.default_rng(0)
    arms = {
        name: ArmResults(name, "acc", own, (random.random((len(own), 60)) < 0.7) * 1.0, np.ones(60))
        for name, own in zip("abc", seeds, strict=False)
    }
    task = SimpleNamespace(
        task="movies",
        metric="acc",
        comparisons=compare_arms(arms, ["a"]),
        arms=pd.DataFrame({"seeds": [len(own) for own in seeds]}),
    )
    assert f"; {covered}; p values are corrected" in _how_sure([task])
