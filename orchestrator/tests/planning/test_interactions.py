"""Cost factors: recovered from a known interaction, and measured on real models with the plan's weights."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from bitrank.models.locate import locate
from bitrank.planning import interactions
from bitrank.planning.budget import sizes_of
from bitrank.planning.costs import Choices, make_problem
from bitrank.planning.interactions import (
    Candidate,
    calibrate_costs,
    choose,
    costs_by_kind,
    find_candidates,
    scaled,
)
from bitrank.planning.plan_divergence import PlanDivergence, PlanEvaluator, kind_of
from bitrank.sensitivity.calibration import calibration
from bitrank.sensitivity.measure import measure
from bitrank.sensitivity.tables import Tables
from bitrank.spec.make_spec import make_spec
from bitrank.spec.profiles import find_profile
from bitrank.spec.run_spec import RunSpec
from bitrank_planner import Effort, Infeasible, Item, Option, Plan, Problem, exact
from bitrank_quant import Format, QuantEmbedding, QuantLinear, parse_format
from bitrank_quant.sensitivity import Divergence, Replay, compute_dtype, weight_of
from safetensors.torch import load_file, save_file

COSTS = {"int2": (2, 9.0), "int4": (4, 3.0), "int8": (8, 1.0)}


def synthetic_problem(budget: int = 22) -> Problem:
    """Return a problem with four blocks of one kind, and an embedding of twice a block's size.

    At the default budget, the last four bytes go either to the blocks or to the embedding.
    """
    items = [
        Item(
            f"layers.{n}.up",
            tuple(Option(f, 0, size, cost) for f, (size, cost) in COSTS.items()),
            "ffn",
            n,
            (4, 4),
        )
        for n in range(4)
    ]
    wide = Item(
        "embedding",
        tuple(Option(f, 0, 2 * size, 2 * cost) for f, (size, cost) in COSTS.items()),
        "embedding",
        None,
        (8, 4),
    )
    return Problem((*items, wide), budget)


class SyntheticEvaluator:
    """An evaluator with a known interaction, which records its ``plans``.

    Blocks add ``times`` the sum of their costs, the embedding adds its own cost.
    """

    def __init__(self, problem: Problem, times: float) -> None:
        self.problem, self.times, self.plans = problem, times, list[Plan]()

    def added(self, plan: Plan) -> PlanDivergence:
        self.plans.append(plan)
        alone = costs_by_kind(self.problem, plan)
        by_kind = {
            kind: cost * (self.times if kind == "layers.*.up" else 1.0) for kind, cost in alone.items()
        }
        return PlanDivergence(sum(by_kind.values()), by_kind)


def factors_of(problem: Problem, evaluator: Any) -> dict[str, float]:
    """The factors of the last round."""
    return find_candidates(problem, cast(PlanEvaluator, evaluator))[-1].factors


def test_kind_is_the_name_without_the_block_number() -> None:
    assert (
        kind_of("model.layers.11.mlp.up_proj")
        == kind_of("model.layers.2.mlp.up_proj")
        != kind_of("model.layers.2.mlp.down_proj")
    )
    assert kind_of("model.embed_tokens") == "model.embed_tokens"


def test_factors_recover_a_known_interaction() -> None:
    problem = synthetic_problem()
    evaluator = SyntheticEvaluator(problem, 3.0)
    factors = factors_of(problem, evaluator)
    assert factors["layers.*.up"] / factors["embedding"] == pytest.approx(3.0)
    plan = exact(scaled(problem, factors))
    assert plan.cost == pytest.approx(evaluator.added(plan).whole), (
        "predictions sum to the measured divergence"
    )
    assert evaluator.added(plan).whole < evaluator.added(exact(problem)).whole, (
        "bytes moved from the embedding to the blocks"
    )


def test_additive_errors_leave_the_plan_unchanged() -> None:
    problem = synthetic_problem()
    assert (
        exact(scaled(problem, factors_of(problem, SyntheticEvaluator(problem, 1.0)))).precision
        == exact(problem).precision
    )


def by_batch(*sums: float) -> Divergence:
    return Divergence(sums, (10,) * len(sums))


def candidates_of(*choices: int) -> list[Candidate]:
    """Candidates whose plans differ in the format of the embedding."""
    problem = synthetic_problem(100)
    plans = [problem.plan([0, 0, 0, 0, choice], "test") for choice in choices]
    return [Candidate(0, {"embedding": float(number)}, plan) for number, plan in enumerate(plans)]


@pytest.mark.parametrize(
    ("second", "chosen"),
    [
        (by_batch(8.0, 10.0, 9.0), 1),  # 1.0 less in each batch, without noise
        (by_batch(4.0, 15.0, 10.0), 0),  # less by the mean, within the noise between batches
        (by_batch(10.0, 12.0, 11.0), 0),
    ],
)
def test_a_plan_is_replaced_only_by_a_difference_beyond_noise(second: Divergence, chosen: int) -> None:
    first = by_batch(9.0, 11.0, 10.0)
    candidates = candidates_of(0, 1)
    divergences = dict(zip((one.plan.choices for one in candidates), (first, second), strict=True))
    kept, divergence = choose(candidates, lambda plan: divergences[plan.choices])
    assert kept is candidates[chosen] and divergence == (first, second)[chosen]


def test_equal_plans_are_evaluated_once() -> None:
    evaluated: list[Plan] = []

    def evaluate(plan: Plan) -> Divergence:
        evaluated.append(plan)
        return by_batch(1.0, 2.0)

    candidates = candidates_of(0, 0, 1, 0)
    assert choose(candidates, evaluate)[0] is candidates[0] and len(evaluated) == 2


def test_factors_are_limited_to_a_range() -> None:
    """A kind's factor is between a quarter of the overall factor and four times that factor."""
    problem = synthetic_problem()
    factors = find_candidates(problem, cast(PlanEvaluator, SyntheticEvaluator(problem, 1e6)))[1].factors
    assert factors["layers.*.up"] / factors["embedding"] <= 16


def test_plan_without_divergence_leaves_costs_unchanged() -> None:
    problem = synthetic_problem()
    costless = interactions.scaled(problem, {"layers.*.up": 0.0, "embedding": 0.0})
    assert set(factors_of(costless, SyntheticEvaluator(costless, 1.0)).values()) == {1.0}


def test_budget_below_the_smallest_plan_is_infeasible() -> None:
    with pytest.raises(Infeasible):
        factors_of(synthetic_problem(3), SyntheticEvaluator(synthetic_problem(3), 1.0))


def problem_of(spec: RunSpec, tables: Tables, ratio: float = 1.3) -> Problem:
    """Return the problem at ``ratio`` times the smallest budget, where errors are large."""
    sizes, choices = sizes_of(spec), Choices(ranks=(2, 4))
    smallest = make_problem(tables, sizes, 10**9, choices).smallest
    return make_problem(tables, sizes, int(ratio * smallest), choices)


@pytest.mark.parametrize("file_dtype", [torch.bfloat16, torch.float32])
def test_calibration_model_stores_matrices_in_the_dtype_of_their_file(
    tmp_path: Path, file_dtype: torch.dtype
) -> None:
    """The matrices are not narrower either: an fp32 run quantizes the exact values of an fp32 file."""
    folder = tmp_path / "model"
    shutil.copytree(locate("tiny-llama"), folder)
    file = folder / "model.safetensors"
    save_file(
        {name: tensor.to(file_dtype) for name, tensor in load_file(file).items()}, file, {"format": "pt"}
    )
    ready = calibration(
        make_spec(find_profile("smoke"), "B-FP", "toy_articles", {"model": str(folder), "dtype": "fp32"})
    )
    file_tensors = load_file(file)
    for matrix in ready.matrices:
        module = ready.model.get_submodule(matrix.name)
        weight = weight_of(module)
        assert (weight.dtype, compute_dtype(module)) == (file_dtype, torch.float32), matrix.name
        if matrix.tied_to is None:
            assert torch.equal(weight, file_tensors[f"{matrix.name}.weight"])


def store_decoded(module: Any, fmt: Format) -> None:
    """Set the weight of ``module`` to its decoded values in ``fmt``, in fp32; a tied head shares it."""
    weight_OI = weight_of(module)
    stored_OI = fmt.decode(
        fmt.encode(weight_OI), (weight_OI.shape[0], weight_OI.shape[1]), compute_dtype(module)
    )
    if isinstance(module, (QuantLinear, QuantEmbedding)):
        module.quantized.fmt, module.quantized.weight = parse_format("fp32"), stored_OI.float()
    else:
        module.weight.data = stored_OI


def test_added_divergence_equals_that_of_the_model_with_quantized_weights(
    spec: RunSpec, tables: Tables
) -> None:
    plan = exact(problem_of(spec, tables))
    ready = calibration(spec)
    replay = Replay(ready.model, ready.joint, ready.forward)
    held_out = Replay(ready.model, ready.held_out, ready.forward)
    evaluator = PlanEvaluator(spec, tables, repairs=False)
    added, others = evaluator.added(plan), evaluator.held_out(plan)
    for name, text in plan.precision.items():
        store_decoded(ready.model.get_submodule(name), parse_format(text))
    assert added.whole == pytest.approx(replay.evaluate_from(None, first=True)[1], rel=1e-4), (
        "equal up to the rounding of a narrowed block"
    )
    assert others.mean == pytest.approx(held_out.evaluate_from(None, first=True)[1], rel=1e-4)
    assert len(others.counts_B) == len(ready.held_out)
    assert added.by_kind.keys() == {kind_of(name) for name in plan.precision}
    assert evaluator.added(plan) == added, "the model was restored"


def test_repaired_weights_diverge_less() -> None:
    """Tests the decoder: of the tiny classifier only the head is fitted, so it has almost no loss to add."""
    spec = make_spec(find_profile("smoke"), "B-FP", "toy_articles")
    tables = measure(spec)
    plan = exact(problem_of(spec, tables))
    # The errors of these formats exceed rounding, so the effect of repairing 3 bits by rank 4 is not chance.
    coarse = {
        name: text if name == "model.embed_tokens" else "int3-g64" for name, text in plan.precision.items()
    }
    plan = replace(plan, precision=coarse, ranks=dict.fromkeys(plan.ranks, 4))
    assert (
        PlanEvaluator(spec, tables, repairs=True).added(plan).whole
        < 0.75 * PlanEvaluator(spec, tables, repairs=False).added(plan).whole
    )


def test_calibration_restores_the_model_and_is_cached(
    spec: RunSpec, tables: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = problem_of(spec, tables, 1.31)
    evaluator = PlanEvaluator(spec, tables, repairs=True)
    modules = dict(evaluator.model.named_modules())
    before = {matrix.name: weight_of(modules[matrix.name]).clone() for matrix in tables.matrices}
    find_candidates(problem, evaluator)
    assert dict(evaluator.model.named_modules()) == modules
    assert all(torch.equal(weight_of(modules[name]), weight) for name, weight in before.items())

    messages: list[str] = []
    first, seconds = calibrate_costs([problem], tables, spec, True, on_progress=messages.append)
    monkeypatch.setattr(interactions, "PlanEvaluator", _fail)
    assert calibrate_costs([problem], tables, spec, True) == (first, seconds)
    assert [item.name for item in first.items] == [item.name for item in problem.items]


@pytest.mark.parametrize(("less", "basis"), [(0.5, 1), (0.0, 0)])
def test_calibration_scales_the_chosen_costs_to_their_divergence(
    less: float,
    basis: int,
    spec: RunSpec,
    tables: Tables,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    problem = problem_of(spec, tables, 1.32)
    other = problem_of(spec, tables, 1.4)
    plans = [exact(problem), exact(other)]
    assert plans[0].choices != plans[1].choices

    class FakeEvaluator:
        def held_out(self, plan: Plan) -> Divergence:
            return by_batch(2.0, 3.0) if plan.choices == plans[0].choices else by_batch(2 - less, 3 - less)

    def find(one: Problem, _evaluator: Any, number: int, *_: Any, effort: Effort) -> list[Candidate]:
        assert effort.seconds == 7.0, "the limit of the request"
        return [Candidate(number, {kind_of(item.name): 1.5 for item in one.items}, exact(one))]

    monkeypatch.setattr(interactions, "find_candidates", find)
    monkeypatch.setattr(interactions, "PlanEvaluator", lambda *_: FakeEvaluator())
    monkeypatch.setattr(interactions, "cache_dir", lambda: tmp_path)
    kept, _ = calibrate_costs([problem, other], tables, spec, True, effort=Effort(7.0))
    chosen = kept.plan(plans[basis].choices, "test")
    assert chosen.cost == pytest.approx((5.0 - 2 * less) / 20)
    assert chosen.precision == plans[basis].precision


_fail: Callable[..., Any] = lambda *_: pytest.fail("calibrated again")  # noqa: E731
