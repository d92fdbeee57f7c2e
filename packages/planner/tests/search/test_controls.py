"""Random search and annealing: no prediction, every plan within reach."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from bitrank_planner.search import SEARCHES
from bitrank_planner.search.ladders import Ladders


@pytest.mark.parametrize("name", ["random", "anneal"])
@pytest.mark.parametrize("seed", range(3))
def test_finds_the_best_of_all_plans(name, seed, tiny, every_plan, crooked_loss):
    found = SEARCHES[name](tiny, crooked_loss, len(every_plan), seed)
    assert found.evaluations == len(every_plan)
    assert found.value == min(map(crooked_loss, every_plan))


@pytest.mark.parametrize("name", ["random", "anneal"])
def test_uses_no_predicted_cost(name, tiny, crooked_loss):
    blind = replace(
        tiny,
        items=tuple(replace(i, options=tuple(replace(o, cost=0.0) for o in i.options)) for i in tiny.items),
    )
    one, other = (SEARCHES[name](problem, crooked_loss, 12, 0) for problem in (tiny, blind))
    assert one.plan.choices == other.plan.choices


def test_annealing_beats_random_search(synthetic):
    problem, evaluate = synthetic
    wins = [
        SEARCHES["anneal"](problem, evaluate, 200, s).value
        < SEARCHES["random"](problem, evaluate, 200, s).value
        for s in range(5)
    ]
    assert sum(wins) >= 4


def test_a_draw_that_fits_is_left_alone_and_one_that_does_not_is_brought_to_the_edge(tiny):
    ladders, random = Ladders(tiny, worth=False), np.random.default_rng(0)
    assert ladders.repair([0, 1, 0], random) == [0, 1, 0]
    mended = ladders.repair(ladders.tops, random)
    assert ladders.spare(mended) >= 0
    assert all(
        place == top or ladders.spare([*mended[:i], place + 1, *mended[i + 1 :]]) < 0
        for i, (place, top) in enumerate(zip(mended, ladders.tops, strict=True))
    )
