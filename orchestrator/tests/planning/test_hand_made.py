"""The hand-made rule: its formats on models of both families, its budget, and pinned matrices."""

from __future__ import annotations

import re

import pytest
from bitrank.planning.budget import Sizes, sizes_of
from bitrank.planning.costs import Choices, make_problem
from bitrank.planning.hand_made import hand_made
from bitrank.sensitivity.tables import Tables
from bitrank.spec.run_spec import RunSpec
from bitrank_planner import Infeasible, PlanError, Problem

LADDER = ["int2-g64-dq", "int3-g64-dq", "int4-g64-dq", "int5-g64-dq", "int6-g64-dq", "int8", "bf16"]
HIGH = re.compile(r"v_proj|o_proj|down_proj|attention\.self\.value|output\.dense")


@pytest.fixture(scope="module")
def sizes(spec: RunSpec) -> Sizes:
    return sizes_of(spec)


def at(tables: Tables, sizes: Sizes, budget: int) -> Problem:
    return make_problem(tables, sizes, budget, Choices(ranks=(2, 4, 8, 16)))


def test_rule_gives_tables_8_bits_and_sensitive_matrices_one_step_more(tables: Tables, sizes: Sizes) -> None:
    plan = hand_made(at(tables, sizes, 10**9), tables)
    low, high = LADDER[-2:]
    for matrix in (m for m in tables.matrices if m.tied_to is None):
        if matrix.role in ("embedding", "head"):
            expected = "int8"
        else:
            expected = high if matrix.layer is not None and HIGH.search(matrix.name) else low
        assert plan.precision[matrix.name] == expected, matrix.name
    assert high in plan.precision.values() and set(plan.ranks.values()) == {8}


def test_largest_pair_that_fits_is_taken(tables: Tables, sizes: Sizes) -> None:
    """At the bytes of a pair that pair is chosen; with one byte less, the pair below."""
    plan = hand_made(at(tables, sizes, 10**9), tables)
    for step in range(len(LADDER) - 2, 0, -1):
        below = hand_made(at(tables, sizes, plan.nbytes - 1), tables)
        used = {fmt for name, fmt in below.precision.items() if name in below.ranks}
        assert used == set(LADDER[step - 1 : step + 1]) and below.nbytes < plan.nbytes
        assert hand_made(at(tables, sizes, below.nbytes), tables).precision == below.precision
        plan = below


def test_embeddings_get_the_larger_format_of_the_pair_where_int8_does_not_fit(
    tables: Tables, sizes: Sizes
) -> None:
    plan = hand_made(at(tables, sizes, 10**9), tables)
    while "int8" in plan.precision.values():
        plan = hand_made(at(tables, sizes, plan.nbytes - 1), tables)
    embeddings = {plan.precision[m.name] for m in tables.matrices if m.role == "embedding"}
    used = {plan.precision[name] for name in plan.ranks}
    assert embeddings == {max(used, key=LADDER.index)}
    with pytest.raises((PlanError, Infeasible)):
        while True:
            plan = hand_made(at(tables, sizes, plan.nbytes - 1), tables)


def test_pinned_matrices_keep_their_format_and_rank(tables: Tables, sizes: Sizes) -> None:
    problem = at(tables, sizes, 10**9)
    table = next(item.name for item in problem.items if item.role == "embedding")
    block = next(item.name for item in problem.items if item.layer is not None)
    plan = hand_made(problem.pinned({table: ("int4-g64-dq", None), block: ("int3-g64-dq", 2)}), tables)
    assert plan.precision[table] == "int4-g64-dq"
    assert (plan.precision[block], plan.ranks[block]) == ("int3-g64-dq", 2)
