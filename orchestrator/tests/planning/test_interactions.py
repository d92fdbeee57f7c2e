"""Factors on costs: found where a made-up truth has them, and measured on real models whose weights really are the plan's."""

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
    Added,
    Bench,
    calibrate_costs,
    costs_by_kind,
    find_factors,
    kind_of,
    scaled,
)
from bitrank.sensitivity.calibration import calibration
from bitrank.sensitivity.measure import measure
from bitrank.sensitivity.tables import Tables
from bitrank.spec.profiles import find_profile
from bitrank.spec.run_spec import RunSpec, make_spec
from bitrank_planner import Infeasible, Item, Option, Plan, Problem, exact
from bitrank_quant import Format, QuantEmbedding, QuantLinear, parse_format
from bitrank_quant.sensitivity import Replay, compute_dtype, weight_of
from safetensors.torch import load_file, save_file

COSTS = {"int2": (2, 9.0), "int4": (4, 3.0), "int8": (8, 1.0)}


def made_up(budget: int = 22) -> Problem:
    """Four blocks of one kind of matrix, and one embedding twice their size; the last four bytes go to a block or to the embedding."""
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


class Truth:
    """Blocks add ``times`` what their costs say together, the embedding what its cost says; ``asked`` lists the plans."""

    def __init__(self, problem: Problem, times: float) -> None:
        self.problem, self.times, self.asked = problem, times, list[Plan]()

    def added(self, plan: Plan) -> Added:
        self.asked.append(plan)
        alone = costs_by_kind(self.problem, plan)
        by_kind = {
            kind: cost * (self.times if kind == "layers.*.up" else 1.0) for kind, cost in alone.items()
        }
        return Added(sum(by_kind.values()), by_kind)


def factors_of(problem: Problem, truth: Any) -> dict[str, float]:
    return find_factors(problem, cast(Bench, truth))[1]


def test_a_kind_is_a_name_without_its_block() -> None:
    assert (
        kind_of("model.layers.11.mlp.up_proj")
        == kind_of("model.layers.2.mlp.up_proj")
        != kind_of("model.layers.2.mlp.down_proj")
    )
    assert kind_of("model.embed_tokens") == "model.embed_tokens"


def test_the_factors_are_those_of_the_truth() -> None:
    problem = made_up()
    truth = Truth(problem, 3.0)
    factors = factors_of(problem, truth)
    assert factors["layers.*.up"] / factors["embedding"] == pytest.approx(3.0)
    plan = exact(scaled(problem, factors))
    assert plan.cost == pytest.approx(truth.added(plan).whole), "predictions add up to what is measured"
    assert truth.added(plan).whole < truth.added(exact(problem)).whole, (
        "bytes went from the embedding to the blocks"
    )


def test_sums_that_hold_change_no_plan() -> None:
    problem = made_up()
    assert (
        exact(scaled(problem, factors_of(problem, Truth(problem, 1.0)))).precision == exact(problem).precision
    )


def test_the_best_round_is_kept() -> None:
    """Whatever later rounds bring, the factors are those whose plan diverged least: here those of the first one."""
    problem = made_up()

    class Worse(Truth):
        def added(self, plan: Plan) -> Added:
            found = super().added(plan)
            return Added(found.whole * 10 ** len(self.asked), found.by_kind)

    factors = factors_of(problem, Worse(problem, 3.0))
    assert factors["layers.*.up"] == pytest.approx(factors["embedding"])


def test_noise_is_bounded() -> None:
    """A kind that adds nothing, or far more than all others, gets a quarter or four times the factor of all together at the most."""
    problem = made_up()
    factors = factors_of(problem, Truth(problem, 1e6))
    assert factors["layers.*.up"] / factors["embedding"] <= 16


def test_a_plan_that_adds_nothing_leaves_costs_alone() -> None:
    problem = made_up()
    free = interactions.scaled(problem, {"layers.*.up": 0.0, "embedding": 0.0})
    assert set(factors_of(free, Truth(free, 1.0)).values()) == {1.0}


def test_a_budget_below_the_smallest_plan_is_told() -> None:
    with pytest.raises(Infeasible):
        factors_of(made_up(3), Truth(made_up(3), 1.0))


def problem_of(spec: RunSpec, tables: Tables, above: float = 1.3) -> Problem:
    """Bytes for so many times the smallest plan: where errors are large."""
    sizes, choices = sizes_of(spec), Choices(ranks=(2, 4))
    smallest = make_problem(tables, sizes, 10**9, choices).smallest
    return make_problem(tables, sizes, int(above * smallest), choices)


@pytest.mark.parametrize("filed", [torch.bfloat16, torch.float32])
def test_a_model_is_held_in_16_bits_where_its_file_is(tmp_path: Path, filed: torch.dtype) -> None:
    """And no narrower: a run that computes in fp32 quantizes what an fp32 file holds to the last bit."""
    folder = tmp_path / "model"
    shutil.copytree(locate("tiny-llama"), folder)
    file = folder / "model.safetensors"
    save_file({name: tensor.to(filed) for name, tensor in load_file(file).items()}, file, {"format": "pt"})
    ready = calibration(
        make_spec(find_profile("smoke"), "B-FP", "toy_articles", {"model": str(folder), "dtype": "fp32"})
    )
    filed_tensors = load_file(file)
    for matrix in ready.matrices:
        module = ready.model.get_submodule(matrix.name)
        weight = weight_of(module)
        assert (weight.dtype, compute_dtype(module)) == (filed, torch.float32), matrix.name
        if matrix.tied_to is None:
            assert torch.equal(weight, filed_tensors[f"{matrix.name}.weight"])


def hold(module: Any, fmt: Format) -> None:
    """The numbers that ``module`` has in ``fmt``, in fp32; a tied head shares them."""
    weight_OI = weight_of(module)
    stored_OI = fmt.decode(
        fmt.encode(weight_OI), (weight_OI.shape[0], weight_OI.shape[1]), compute_dtype(module)
    )
    if isinstance(module, (QuantLinear, QuantEmbedding)):
        module.quantized.fmt, module.quantized.weight = parse_format("fp32"), stored_OI.float()
    else:
        module.weight.data = stored_OI


def test_what_a_plan_adds_is_measured_with_its_weights_in_place(spec: RunSpec, tables: Tables) -> None:
    plan = exact(problem_of(spec, tables))
    ready = calibration(spec)
    replay = Replay(ready.model, ready.joint, ready.forward)
    bench = Bench(spec, tables, repairs=False)
    added = bench.added(plan)
    for name, text in plan.precision.items():
        hold(ready.model.get_submodule(name), parse_format(text))
    assert added.whole == pytest.approx(replay.evaluate_from(None, first=True)[1], rel=1e-4), (
        "but for how a narrowed block rounds"
    )
    assert added.by_kind.keys() == {kind_of(name) for name in plan.precision}
    assert bench.added(plan) == added, "the model was as before"


def test_repaired_weights_diverge_less() -> None:
    """Of the decoder: the tiny classifier, whose head alone was ever fitted, has next to nothing to lose."""
    spec = make_spec(find_profile("smoke"), "B-FP", "toy_articles")
    tables = measure(spec)
    plan = exact(problem_of(spec, tables))
    # In formats whose errors stand above rounding: what a rank of 4 repairs of 3 bits is no matter of chance.
    coarse = {
        name: text if name == "model.embed_tokens" else "int3-g64" for name, text in plan.precision.items()
    }
    plan = replace(plan, precision=coarse, ranks=dict.fromkeys(plan.ranks, 4))
    assert (
        Bench(spec, tables, repairs=True).added(plan).whole
        < 0.75 * Bench(spec, tables, repairs=False).added(plan).whole
    )


def test_calibrating_leaves_the_model_as_it_was_and_is_done_once(
    spec: RunSpec, tables: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = problem_of(spec, tables, 1.31)
    bench = Bench(spec, tables, repairs=True)
    modules = dict(bench._model.named_modules())
    before = {matrix.name: weight_of(modules[matrix.name]).clone() for matrix in tables.matrices}
    find_factors(problem, bench)
    assert dict(bench._model.named_modules()) == modules
    assert all(torch.equal(weight_of(modules[name]), weight) for name, weight in before.items())

    told: list[str] = []
    first, seconds = calibrate_costs([problem], tables, spec, True, told.append)
    monkeypatch.setattr(interactions, "Bench", _refused)
    assert calibrate_costs([problem], tables, spec, True) == (first, seconds)
    assert len(told) in {0, interactions.ROUNDS + 1}  # none where an earlier test run filled the cache
    assert [item.name for item in first.items] == [item.name for item in problem.items]


def test_of_several_costs_those_are_kept_whose_plan_diverged_least(
    spec: RunSpec, tables: Tables, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    problem = problem_of(spec, tables, 1.32)
    other = scaled(problem, {kind_of(item.name): 2.0 for item in problem.items})
    found = iter([(3.0, 1.5), (1.0, 5.0), (2.0, 7.0)])

    def find(one: Problem, *_: Any) -> tuple[float, dict[str, float]]:
        whole, factor = next(found)
        return whole, {kind_of(item.name): factor for item in one.items}

    monkeypatch.setattr(interactions, "find_factors", find)
    monkeypatch.setattr(interactions, "Bench", lambda *_: None)
    monkeypatch.setattr(interactions, "cache_dir", lambda: tmp_path)
    kept, _ = calibrate_costs([problem, other, problem], tables, spec, True)
    assert kept == scaled(other, {kind_of(item.name): 5.0 for item in problem.items})


_refused: Callable[..., Any] = lambda *_: pytest.fail("calibrated again")  # noqa: E731
