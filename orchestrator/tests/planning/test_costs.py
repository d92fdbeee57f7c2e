"""Costs equal their formula, and every planner keeps the budget."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from bitrank.planning.budget import Sizes, sizes_of
from bitrank.planning.costs import Choices, by_fisher, costs, make_problem
from bitrank.planning.planners import PLANNERS, plan_by
from bitrank.sensitivity.measure import measure
from bitrank.sensitivity.tables import Tables
from bitrank.spec.run_spec import RunSpec
from bitrank_planner import Effort, Infeasible, PlanError, exact

CHOICES = Choices(ranks=(2, 4, 8))


@pytest.fixture(scope="module")
def sizes(spec: RunSpec) -> Sizes:
    return sizes_of(spec)


def test_second_measurement_reads_the_cached_tables(spec: RunSpec, tables: Tables) -> None:
    again = measure(spec)
    assert again.base == tables.base and again.matrices == tables.matrices
    for name, moments in tables.moments.items():
        assert torch.equal(moments.row_O, again.moments[name].row_O)
        assert torch.equal(moments.gradient_K, again.moments[name].gradient_K)


def test_cost_equals_its_formula(tables: Tables) -> None:
    matrix = next(m for m in tables.matrices if m.layer == 0 and m.role == "ffn")
    errors = tables.errors[matrix.name]["int2-g64-dq"]
    assert errors.output != errors.fisher
    for repairs in (True, False):
        got = costs(matrix, tables, "int2-g64-dq", (2, 4, 8), Choices(repairs=repairs))
        for rank, cost in zip((2, 4, 8), got, strict=True):
            left = float(errors.tail_R[rank] / errors.tail_R[0]) if repairs else 1.0
            assert cost == pytest.approx(errors.output * left, rel=1e-5)


def test_fisher_tables_replace_the_score_only(tables: Tables) -> None:
    other = by_fisher(tables)
    for name, formats in tables.errors.items():
        for fmt, errors in formats.items():
            assert other.errors[name][fmt] == replace(errors, output=errors.fisher), (name, fmt)
    assert other.moments == tables.moments and other.base == tables.base


def test_embeddings_get_formats_and_no_rank(tables: Tables, sizes: Sizes) -> None:
    problem = make_problem(tables, sizes, 10**9, CHOICES)
    for item in problem.items:
        ranks = {option.rank for option in item.options}
        assert ranks == ({2, 4, 8} if item.layer is not None and item.role != "embedding" else {0})


@pytest.mark.parametrize("name", PLANNERS)
def test_every_planner_keeps_the_budget(name: str, tables: Tables, sizes: Sizes) -> None:
    problem = make_problem(tables, sizes, sizes.parameters * 12 // 8, Choices(ranks=tuple(range(1, 13))))
    try:
        plan = plan_by(name, problem, tables, Effort())
    except PlanError as error:
        assert name in {"encoder_high_decoder_low", "edges_high", "bits-only", "embeddings_and_head_high"}, (
            error
        )
        return
    assert problem.fits(plan) and set(plan.precision) == {item.name for item in problem.items}
    assert plan.cost >= exact(problem).cost * (1 - 1e-6)


def test_unmeasured_format_and_oversized_rank_are_refused(tables: Tables, sizes: Sizes) -> None:
    with pytest.raises(PlanError, match="int5-g32 was not measured; measured: int2-g64-dq"):
        make_problem(tables, sizes, 10**9, Choices(formats=("int5-g32",)))
    with pytest.raises(PlanError, match="no rank of"):
        make_problem(tables, sizes, 10**9, Choices(ranks=(10**6,)))


def test_infeasible_budget_reports_the_smallest_feasible_one(tables: Tables, sizes: Sizes) -> None:
    problem = make_problem(tables, sizes, 1000, CHOICES)
    with pytest.raises(Infeasible) as caught:
        exact(problem)
    assert exact(make_problem(tables, sizes, caught.value.smallest, CHOICES)).nbytes == caught.value.smallest
