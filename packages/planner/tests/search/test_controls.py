"""Random search and annealing use no prediction and can reach every plan."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from bitrank_planner import PlanError, random_plan
from bitrank_planner.search import SEARCHES
from bitrank_planner.search.ladders import Ladders


@pytest.mark.parametrize("name", ["random", "anneal"])
@pytest.mark.parametrize("seed", range(3))
def test_control_finds_the_best_of_all_plans(name, seed, tiny, every_plan, unpredictable_loss):
    found = SEARCHES[name](tiny, unpredictable_loss, len(every_plan), seed)
    assert found.evaluations == len(every_plan)
    assert found.value == min(map(unpredictable_loss, every_plan))


@pytest.mark.parametrize("name", ["random", "anneal"])
def test_control_ignores_the_predicted_cost(name, tiny, unpredictable_loss):
    without_costs = replace(
        tiny,
        items=tuple(replace(i, options=tuple(replace(o, cost=0.0) for o in i.options)) for i in tiny.items),
    )
    one, other = (SEARCHES[name](problem, unpredictable_loss, 12, 0) for problem in (tiny, without_costs))
    assert one.plan.choices == other.plan.choices


def test_annealing_beats_random_search(synthetic):
    problem, evaluate = synthetic
    wins = [
        SEARCHES["anneal"](problem, evaluate, 200, s).value
        < SEARCHES["random"](problem, evaluate, 200, s).value
        for s in range(5)
    ]
    assert sum(wins) >= 4


def test_repair_keeps_a_feasible_plan_and_makes_others_maximal(tiny):
    ladders, random = Ladders(tiny, non_dominated_only=False), np.random.default_rng(0)
    assert ladders.repair([0, 1, 0], random) == [0, 1, 0]
    repaired = ladders.repair(ladders.tops, random)
    assert ladders.spare(repaired) >= 0
    assert all(
        place == top or ladders.spare([*repaired[:i], place + 1, *repaired[i + 1 :]]) < 0
        for i, (place, top) in enumerate(zip(repaired, ladders.tops, strict=True))
    )


def test_random_plans_reach_every_plan_and_keep_one_limit(tiny, every_plan):
    drawn = {random_plan(tiny, draw).choices for draw in range(400)}
    assert drawn == {plan.choices for plan in every_plan}
    assert random_plan(tiny, 7) == random_plan(tiny, 7)
    with pytest.raises(PlanError, match="leave out ties and the limit on trainable numbers"):
        random_plan(replace(tiny, max_trainable=1), 0)
