"""The hand-made rule: its formats on models of both families, its budget, and pinned matrices."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise
from typing import Any

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


def ruled(problem: Problem, tables: Tables, low: str, high: str, above: set[str]) -> Plan:
    """``high`` for the blocks ``above``, ``low`` for the others, and embeddings as the rule gives them."""
    fine = LADDER.index(low) >= LADDER.index("int4-g64-dq")
    precision, ranks = {}, {}
    for matrix in (m for m in tables.matrices if m.tied_to is None):
        block = high if matrix.name in above else low
        is_table = matrix.role in ("embedding", "head")
        precision[matrix.name] = ("int8" if fine else high) if is_table else block
        ranks[matrix.name] = 8 if matrix.adaptable else 0
    return problem.find(precision, ranks, "hand-made")


def sensitive(tables: Tables) -> set[str]:
    return {m.name for m in tables.matrices if m.layer is not None and HIGH.search(m.name)}


@pytest.mark.parametrize(("low", "high"), list(pairwise(LADDER)))
def test_at_the_bytes_of_one_format_or_of_a_mix_the_plan_is_that(
    tables: Tables, sizes: Sizes, low: str, high: str
) -> None:
    """One format for all blocks, and one with sensitive matrices a format above the others."""
    for above in (set(), sensitive(tables)):
        wanted = ruled(at(tables, sizes, 10**9), tables, low, high, above)
        assert hand_made(at(tables, sizes, wanted.nbytes), tables) == wanted


@pytest.mark.parametrize(("low", "high"), list(pairwise(LADDER)))
def test_what_is_left_fits_no_other_block(tables: Tables, sizes: Sizes, low: str, high: str) -> None:
    start = ruled(at(tables, sizes, 10**9), tables, low, high, set())
    full = ruled(at(tables, sizes, 10**9), tables, low, high, sensitive(tables))
    for budget in range(start.nbytes, full.nbytes, 1 + (full.nbytes - start.nbytes) // 7):
        problem = at(tables, sizes, budget)
        plan = hand_made(problem, tables)
        assert {plan.precision[name] for name in start.ranks if start.ranks[name]} <= {low, high}
        left = [name for name, rank in plan.ranks.items() if rank and plan.precision[name] == low]
        more = [problem.find({**plan.precision, name: high}, plan.ranks, "hand-made") for name in left]
        assert not any(problem.fits(other) for other in more)


def test_a_sensitive_matrix_of_the_first_block_is_raised_first(tables: Tables, sizes: Sizes) -> None:
    low, high = LADDER[2:4]
    everything, layers = at(tables, sizes, 10**9), {m.name: m.layer for m in tables.matrices}
    start = ruled(everything, tables, low, high, set())
    for name in sensitive(tables):
        one = ruled(everything, tables, low, high, {name})
        plan = hand_made(at(tables, sizes, one.nbytes), tables)
        changed = [n for n, fmt in plan.precision.items() if fmt != start.precision[n]]
        assert changed and HIGH.search(changed[0]) and layers[changed[0]] == 0


def test_with_less_than_int8_embeddings_need_beside_4_bit_blocks_they_get_the_larger_format_of_the_pair(
    tables: Tables, sizes: Sizes
) -> None:
    low, high = LADDER[2:4]
    start = ruled(at(tables, sizes, 10**9), tables, low, high, set())
    plan = hand_made(at(tables, sizes, start.nbytes - 1), tables)
    embeddings = {plan.precision[m.name] for m in tables.matrices if m.role == "embedding"}
    used = sorted({plan.precision[name] for name in plan.ranks if plan.ranks[name]}, key=LADDER.index)
    assert embeddings == {LADDER[LADDER.index(used[0]) + 1]} and embeddings >= set(used[1:])


def test_pinned_matrices_keep_their_format_and_rank(tables: Tables, sizes: Sizes) -> None:
    problem = at(tables, sizes, 10**9)
    table = next(item.name for item in problem.items if item.role == "embedding")
    block = next(item.name for item in problem.items if item.layer is not None)
    plan = hand_made(problem.pinned({table: ("int4-g64-dq", None), block: ("int3-g64-dq", 2)}), tables)
    assert plan.precision[table] == "int4-g64-dq"
    assert (plan.precision[block], plan.ranks[block]) == ("int3-g64-dq", 2)


def test_a_runtime_without_int8_gets_its_own_format_of_8_bits(tables: Tables, sizes: Sizes) -> None:
    formats = ("int4-g64-dq", "int6-g64", "int8-g64")
    measured = replace(tables, errors={name: _with(by_format) for name, by_format in tables.errors.items()})
    problem = make_problem(measured, sizes, 10**9, Choices(formats=formats, ranks=(8,)))
    low = problem.find(*_one(problem, "int4-g64-dq", "int8-g64"), "hand-made")
    plan = hand_made(replace(problem, budget=low.nbytes), measured)
    assert {plan.precision[m.name] for m in tables.matrices if m.role == "embedding"} == {"int8-g64"}


def _with(by_format: dict[str, Any]) -> dict[str, Any]:
    """The errors of formats that were measured, for two that were not."""
    return {**by_format, "int6-g64": by_format["int6-g64-dq"], "int8-g64": by_format["int8"]}


def _one(problem: Problem, blocks: str, embeddings: str) -> tuple[dict[str, str], dict[str, int]]:
    """The formats of a plan with one for blocks and one for the others, and rank 8."""
    precision = {item.name: embeddings if item.layer is None else blocks for item in problem.items}
    ranks = {item.name: max(option.rank for option in item.options) for item in problem.items}
    return precision, ranks
