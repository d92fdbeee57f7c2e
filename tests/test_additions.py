"""Additions from outside the tree (format, backend, planner, rank rule) work on tiny models."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bitrank.planning.costs import Choices
from bitrank.planning.make_plan import PlanRequest, make_plan
from bitrank.planning.planners import PLANNERS, Planner
from bitrank.run.record import Record
from bitrank.run.train_run import execute
from bitrank.spec.configs import CONFIGS, Config
from bitrank.spec.make_spec import make_spec
from bitrank.spec.plan_file import plan_data, save_plan
from bitrank.spec.profiles import PROFILES
from bitrank.spec.rule_interface import Adapters, AttachOptions
from bitrank.spec.rules import BlocksIn, FixedRank
from bitrank_adapters import FixedRanks, attach_lora
from bitrank_planner import Plan, Problem
from bitrank_quant import (
    BACKENDS,
    FORMATS,
    REFERENCE,
    Backend,
    Format,
    Int8Row,
    QuantLinear,
    QuantWeight,
    choose_backend,
    computes_as,
    decoder,
    parse_format,
    stored_bytes,
    stored_weight,
)
from bitrank_trainer import ALONE
from torch import Tensor, nn

SMOKE = PROFILES["smoke"]


def trained(folder: Path, config: str, **changes: Any) -> dict[str, Any]:
    """The plan and the result of a real run of four steps."""
    folder.mkdir()
    spec = make_spec(SMOKE, config, "toy_sentences", {"steps": 4, "eval_every": 4, **changes})
    execute(spec, folder, Record(folder, ALONE), ALONE)
    plan = json.loads((folder / "plan.json").read_text())
    return {**plan, "result": json.loads((folder / "result.json").read_text())}


@dataclass(frozen=True)
class Signs:
    """``w ≈ ±scale``: one byte a sign, and the mean magnitude of the row in fp32."""

    bits = 8
    block = None
    value_range = (-1.0, 1.0)
    about = "a sign and one fp32 scale per row"

    def encode(self, weight_OI: Tensor) -> dict[str, Tensor]:
        weight_OI = weight_OI.detach().float()
        return {"codes": weight_OI.sign().to(torch.int8), "scale": weight_OI.abs().mean(1)}

    def decode(
        self, tensors: dict[str, Tensor], shape: tuple[int, int], dtype: torch.dtype, scratch: Any = None
    ) -> Tensor:
        return (tensors["codes"].float() * tensors["scale"][:, None]).to(dtype)

    def rows(self, tensors: dict[str, Tensor], ids_N: Tensor | slice, rows: int) -> dict[str, Tensor]:
        return {name: tensor[ids_N] for name, tensor in tensors.items()}

    def nbytes(self, shape: tuple[int, int]) -> int:
        return shape[0] * shape[1] + 4 * shape[0]

    def __str__(self) -> str:
        return "signs8"


@pytest.fixture
def signs(monkeypatch: pytest.MonkeyPatch) -> Format:
    fmt = Signs()
    monkeypatch.setitem(FORMATS, str(fmt), fmt)
    return fmt


def test_new_format_of_one_class_and_one_entry_trains(
    signs: Format, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CONFIGS, "Signs", Config(BlocksIn("signs8"), FixedRank(4), "baseline"))
    plan = trained(tmp_path / "run", "Signs")
    held = {done["format"] for done in plan["applied"].values()}
    assert held == {"signs8", "bf16"}


def test_new_format_of_one_class_and_one_entry_can_be_planned(signs: Format, tmp_path: Path) -> None:
    spec = make_spec(SMOKE, "B-FP", "toy_sentences")
    choices = Choices(formats=("signs8", "bf16"), ranks=(2, 4))
    made = make_plan(spec, PlanRequest("11bits", "uniform", choices))
    assert set(made.plan.precision.values()) == {"signs8"} and made.plan.nbytes <= made.problem.budget
    path = tmp_path / "plan.json"
    save_plan(plan_data(made.plan, made.sizes.matrices, made.problem.budget, "default"), path)
    plan = trained(tmp_path / "run", "", plan=str(path))
    assert {done["format"] for done in plan["applied"].values()} == {"signs8"}


class ScaledLinear(QuantLinear):
    """``y = (x · codesᵀ) · scale + b``."""

    def forward(self, input: Tensor) -> Tensor:
        codes_OI = self.quantized.tensors["codes"].to(input.dtype)
        output = nn.functional.linear(input, codes_OI) * self.quantized.tensors["scale"].to(input.dtype)
        return output if self.bias is None else output + self.bias.to(input.dtype)


def make_scaled(linear: nn.Linear, fmt: Format, compute_dtype: torch.dtype) -> nn.Module:
    return ScaledLinear(QuantWeight(linear.weight, fmt, compute_dtype), linear.bias)


SCALED = Backend(
    "scaled",
    "int8 rows whose scales are applied to the output",
    "torch",
    ("cpu",),
    serves=lambda fmt: fmt == Int8Row(),
    make=make_scaled,
    owns=lambda layer: computes_as(layer, ScaledLinear),
    stored_weight=REFERENCE.stored_weight,
    decode=REFERENCE.decode,
)


def test_new_backend_of_one_value_stores_trains_and_counts_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = dict(BACKENDS)
    BACKENDS.clear()
    BACKENDS.update({"scaled": SCALED} | others)
    try:
        fmt = parse_format("int8")
        assert choose_backend(fmt, "cpu") is SCALED
        layer = SCALED.make(nn.Linear(64, 32), fmt, torch.float32)
        decode = decoder(layer)
        assert decode is not None and torch.equal(decode(), stored_weight(layer))
        assert stored_bytes(layer).total == SCALED.nbytes(fmt, (32, 64), torch.float32) + 4 * 32
        monkeypatch.setitem(CONFIGS, "Scaled", Config(BlocksIn("int8"), FixedRank(4), "baseline"))
        plan = trained(tmp_path / "run", "Scaled")
        assert {done["backend"] for done in plan["applied"].values()} == {"scaled", "torch"}
    finally:
        BACKENDS.clear()
        BACKENDS.update(others)


def smallest(problem: Problem, _tables: Any) -> Plan:
    """The fewest bytes of every matrix."""
    choices = []
    for item in problem.items:
        sizes = [option.nbytes for option in item.options]
        choices.append(sizes.index(min(sizes)))
    return problem.plan(choices, "smallest")


def test_new_planner_of_one_function_and_one_entry_gives_a_trainable_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PLANNERS, "smallest", Planner(smallest, "the fewest bytes of every matrix"))
    spec = make_spec(SMOKE, "B-FP", "toy_sentences")
    made = make_plan(spec, PlanRequest("11bits", "smallest", Choices(ranks=(2, 4))))
    assert made.plan.nbytes == made.problem.smallest
    path = tmp_path / "plan.json"
    save_plan(plan_data(made.plan, made.sizes.matrices, made.problem.budget, "default"), path)
    plan = trained(tmp_path / "run", "", plan=str(path))
    assert plan["result"]["lora/rank"] == 2 * len(made.plan.ranks)


@dataclass(frozen=True)
class DeepRank(Adapters):
    """Rank ``low`` in the first layer and ``high`` in the others."""

    low: int
    high: int

    def assign_ranks(self, blocks: Sequence[Any]) -> dict[str, int]:
        return {matrix.name: self.high if matrix.layer else self.low for matrix in blocks}

    def attach(self, model: Any, ranks: dict[str, int], options: AttachOptions) -> tuple[Any, Any]:
        adapted = attach_lora(model, ranks, **options.shared)
        return adapted, FixedRanks(adapted)


def test_new_rank_rule_of_one_dataclass_and_one_line_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CONFIGS, "Deep", replace(CONFIGS["B-Q4"], rank=DeepRank(2, 6)))
    trained(tmp_path / "run", "Deep")
    ranks = json.loads((tmp_path / "run" / "ranks.json").read_text())["final"]
    assert set(ranks.values()) == {2, 6}
