"""Values of learned directions are those of their definition; costs follow from them and are cached."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from bitrank.errors import UserError
from bitrank.planning import learning, probe
from bitrank.planning.budget import sizes_of
from bitrank.planning.costs import Choices, make_problem
from bitrank.planning.make_plan import PlanRequest, make_plan
from bitrank.run.data import load_data
from bitrank.sensitivity.tables import Tables
from bitrank.spec.configs import PlannedArm
from bitrank.spec.make_spec import make_spec
from bitrank.spec.plan_request import planning_spec
from bitrank.spec.profiles import find_profile
from bitrank.spec.run_spec import RunSpec
from bitrank_adapters import ResidualStart
from bitrank_planner import Effort, Problem, exact

LOSSES = 5
CHOICES = Choices(formats=("int2-g64-dq", "int4-g64-dq", "int8"), ranks=(0, 2, 4, 8, 16))


@pytest.fixture(scope="module")
def problem(spec: RunSpec, tables: Tables) -> Problem:
    return make_problem(tables, sizes_of(spec), 10**9, CHOICES)


def test_directions_add_up_to_the_slope_of_the_whole_change() -> None:
    generator = torch.Generator().manual_seed(0)
    delta_OI, x_NI, grad_NO = (
        torch.randn(6, 3, generator=generator) @ torch.randn(3, 9, generator=generator),
        torch.randn(20, 9, generator=generator),
        torch.randn(20, 6, generator=generator),
    )
    sums = probe.DirectionSums.of(delta_OI, 3)
    for part in (slice(0, 12), slice(12, 20)):
        sums.add(x_NI[part], grad_NO[part])
    gradient_OI = grad_NO.T @ x_NI
    left_OK, value_K, right_KI = torch.linalg.svd(delta_OI, full_matrices=False)
    expected = []
    for k in range(3):
        direction_OI = value_K[k] * torch.outer(left_OK[:, k], right_KI[k])
        slope = (gradient_OI * direction_OI).sum()
        fisher = (grad_NO * (x_NI @ direction_OI.T)).square().sum()
        expected.append(float(-(slope + 0.5 * fisher) / LOSSES))
    assert sums.values(LOSSES) == pytest.approx(expected, rel=1e-4)
    assert float(sums.slope_K.sum()) == pytest.approx(float((gradient_OI * delta_OI).sum()), rel=1e-4)


def test_a_matrix_that_did_not_change_has_no_value() -> None:
    sums = probe.DirectionSums.of(torch.zeros(6, 9), 4)
    sums.add(torch.ones(3, 9), torch.ones(3, 6))
    assert not sums.values(LOSSES).any()


def test_costs_fall_with_rank_by_the_positive_values_alone() -> None:
    assert learning.missed(np.array([3.0, -1.0, 2.0])).tolist() == [5.0, 2.0, 2.0, 0.0]
    missed_R = learning.missed(np.random.default_rng(0).normal(size=64))
    assert (np.diff(missed_R) <= 0).all()


def test_probe_adds_the_missed_values_to_every_format_alike(
    spec: RunSpec, tables: Tables, problem: Problem
) -> None:
    added, seconds = learning.add_learning(problem, tables, spec, repairs=False)
    assert seconds > 0
    precision = exact(problem, Effort()).precision
    values = learning.probe_once(spec, tables, precision, repairs=False).values
    assert values.keys() == {item.name for item in problem.items if len({o.rank for o in item.options}) > 1}
    assert any(learning.missed(value_K)[0] > 0 for value_K in values.values())
    for before, after in zip(problem.items, added.items, strict=True):
        missed_R = learning.missed(values.get(before.name, np.zeros(1)))
        for old, new in zip(before.options, after.options, strict=True):
            missed = missed_R[min(old.rank, len(missed_R) - 1)]
            assert new == replace(old, cost=new.cost)
            assert new.cost == pytest.approx(old.cost + missed, rel=1e-12, abs=0)


def test_the_second_probe_is_read_from_the_cache(
    spec: RunSpec, tables: Tables, problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = learning.add_learning(problem, tables, spec, repairs=False)
    monkeypatch.setattr(learning, "_run", None)
    assert learning.add_learning(problem, tables, spec, repairs=False)[0] == first


def test_equal_seeds_give_equal_values(spec: RunSpec, tables: Tables) -> None:
    matrices = [matrix for matrix in tables.matrices if matrix.adaptable]
    formats = {matrix.name: "int8" for matrix in tables.matrices if matrix.tied_to is None}
    ranks = {matrix.name: 4 for matrix in matrices}
    first, second = (probe.learned_values(spec, formats, ranks, ResidualStart({})) for _ in range(2))
    assert first.keys() == ranks.keys()
    assert all(np.array_equal(first[name], second[name]) for name in ranks)


def test_held_out_sequences_are_not_trained_on(spec: RunSpec) -> None:
    task = load_data(spec).task
    kept, held_out = probe.split_held_out(task)
    rows = sum(len(batch["input_ids"]) for batch in held_out)
    assert 0 < rows <= len(task.splits["train"]) // 2
    assert len(kept.splits["train"]) + rows == len(task.splits["train"])


def test_an_unknown_name_is_rejected(spec: RunSpec) -> None:
    with pytest.raises(UserError, match="learning"):
        make_plan(spec, PlanRequest("=B-Q4", learning="guess"))


def test_a_plan_depends_on_the_training_settings_only_if_it_trains(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from bitrank.spec import configs

    for planner, name, is_kept in (
        ("exact", "none", False),
        ("exact", "probe", True),
        ("race", "none", True),
    ):
        monkeypatch.setitem(configs.CONFIGS, "Plan-Q4", PlannedArm(planner, "=B-Q4", learning=name))
        settings = {"learning_rate": 0.02}
        spec = make_spec(find_profile("smoke"), "Plan-Q4", "toy_sentences", settings)
        assert (planning_spec(spec).learning_rate == 0.02) is is_kept
