"""The hand-made rule: its formats on models of both families, its budget, and pinned matrices."""

from __future__ import annotations

import re

import pytest
from bitrank.planning.budget import Sizes, sizes_of
from bitrank.planning.costs import Choices, make_problem
from bitrank.planning.hand_made import hand_made
from bitrank.sensitivity.tables import Tables
from bitrank.spec.run_spec import RunSpec
from bitrank_planner import Plan, Problem

LADDER = ["int2-g64-dq", "int3-g64-dq", "int4-g64-dq", "int5-g64-dq", "int6-g64-dq", "int8", "bf16"]
HIGH = re.compile(r"v_proj|o_proj|down_proj|attention\.self\.value|output\.dense")


@pytest.fixture(scope="module")
def sizes(spec: RunSpec) -> Sizes:
    return sizes_of(spec)


def at(tables: Tables, sizes: Sizes, budget: int) -> Problem:
    return make_problem(tables, sizes, budget, Choices(ranks=(2, 4, 8, 16)))


def pair(problem: Problem, tables: Tables, step: int) -> Plan:
    """The formats ``step`` and ``step`` + 1 of the ladder as the rule gives them, before it uses the rest."""
    low, high = LADDER[step : step + 2]
    embeddings = "int8" if step >= LADDER.index("int4-g64-dq") else high
    precision, ranks = {}, {}
    for matrix in (m for m in tables.matrices if m.tied_to is None):
        if matrix.role in ("embedding", "head"):
            precision[matrix.name] = embeddings
        else:
            precision[matrix.name] = high if matrix.layer is not None and HIGH.search(matrix.name) else low
        ranks[matrix.name] = 8 if matrix.adaptable else 0
    return problem.find(precision, ranks, "hand-made")


@pytest.mark.parametrize("step", range(len(LADDER) - 1))
def test_at_the_bytes_of_a_pair_the_plan_is_that_pair(tables: Tables, sizes: Sizes, step: int) -> None:
    wanted = pair(at(tables, sizes, 10**9), tables, step)
    assert hand_made(at(tables, sizes, wanted.nbytes), tables) == wanted


@pytest.mark.parametrize("step", [1, 3, 4, 5])
def test_below_the_bytes_of_a_pair_the_next_smaller_one_is_taken_and_the_rest_raises_its_other_blocks(
    tables: Tables, sizes: Sizes, step: int
) -> None:
    problem = at(tables, sizes, pair(at(tables, sizes, 10**9), tables, step).nbytes - 1)
    plan, start = hand_made(problem, tables), pair(problem, tables, step - 1)
    low, high = LADDER[step - 1 : step + 1]
    changed = {name for name, fmt in plan.precision.items() if fmt != start.precision[name]}
    assert changed and all((start.precision[name], plan.precision[name]) == (low, high) for name in changed)
    assert not any(HIGH.search(name) for name in changed)
    left = [name for name in plan.ranks if plan.precision[name] == low and plan.ranks[name]]
    others = [problem.find({**plan.precision, name: high}, plan.ranks, "hand-made") for name in left]
    assert not any(problem.fits(other) for other in others)


def test_with_less_than_int8_embeddings_need_beside_4_bit_blocks_they_get_the_larger_format_of_the_pair(
    tables: Tables, sizes: Sizes
) -> None:
    step = LADDER.index("int4-g64-dq")
    plan = hand_made(at(tables, sizes, pair(at(tables, sizes, 10**9), tables, step).nbytes - 1), tables)
    embeddings = {plan.precision[m.name] for m in tables.matrices if m.role == "embedding"}
    assert embeddings == {LADDER[step + 1]}
    assert {plan.precision[name] for name in plan.ranks if HIGH.search(name)} == {LADDER[step + 1]}


def test_outermost_blocks_are_raised_first(tables: Tables, sizes: Sizes) -> None:
    """With bytes for one more matrix than the pair takes, the one raised is of the first block."""
    everything = at(tables, sizes, 10**9)
    start = pair(everything, tables, 2)
    for matrix in (m for m in tables.matrices if m.adaptable and not HIGH.search(m.name)):
        raised = everything.find({**start.precision, matrix.name: LADDER[3]}, start.ranks, "hand-made")
        plan = hand_made(at(tables, sizes, raised.nbytes), tables)
        changed = [name for name, fmt in plan.precision.items() if fmt != start.precision[name]]
        layers = {m.name: m.layer for m in tables.matrices}
        assert changed and layers[changed[0]] == 0


def test_pinned_matrices_keep_their_format_and_rank(tables: Tables, sizes: Sizes) -> None:
    problem = at(tables, sizes, 10**9)
    table = next(item.name for item in problem.items if item.role == "embedding")
    block = next(item.name for item in problem.items if item.layer is not None)
    plan = hand_made(problem.pinned({table: ("int4-g64-dq", None), block: ("int3-g64-dq", 2)}), tables)
    assert plan.precision[table] == "int4-g64-dq"
    assert (plan.precision[block], plan.ranks[block]) == ("int3-g64-dq", 2)
