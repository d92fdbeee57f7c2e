"""Sizes by shapes alone equal what was really built: every format and backend, odd shapes, whole models of both families."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from bitrank.cli.main import main
from bitrank.forecast.dry_run import unplanned_model
from bitrank.forecast.model_shapes import model_shapes
from bitrank.forecast.stored_size import base_bytes, held_by_torch, stored_size
from bitrank.models.load import open_model
from bitrank.models.locate import locate
from bitrank.run.adapter_init import choose_init
from bitrank.run.plans import make_plans, store_base
from bitrank.spec.configs import find_config
from bitrank.spec.profiles import find_profile
from bitrank.spec.run_spec import RunSpec, make_spec
from bitrank_adapters import adapter_bytes
from bitrank_quant import (
    BACKENDS,
    FORMATS,
    QuantError,
    WeightMatrix,
    parse_format,
    stored_bytes,
    weight_matrices,
)
from torch import nn

TASKS = ("toy_sentences", "toy_articles")
ODD = ((128, 64), (33, 64), (7, 192), (40, 96), (5, 7), (64, 100), (1, 64), (1, 65), (2, 64), (300, 320))
HELD = [
    (b.name, text)
    for b in BACKENDS.values()
    for text in (*FORMATS, "int4-g32", "nf4-g128", "nf4-g32-dq")
    if b.serves(parse_format(text))
]


def spec_of(task: str, config: str = "B-FP", **given: object) -> RunSpec:
    return make_spec(find_profile("smoke"), config, task, given)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("backend", "text"), HELD)
def test_bytes_of_a_matrix_are_those_of_the_layer_that_was_built(
    backend: str, text: str, dtype: torch.dtype
) -> None:
    fmt = parse_format(text)
    for out, into in ODD:
        linear = nn.Linear(into, out, bias=False, dtype=dtype).requires_grad_(False)
        if BACKENDS[backend].misfit(fmt, (out, into)):
            with pytest.raises(ValueError, match="64"):  # quanto's own word, without the name of a matrix
                BACKENDS[backend].make(linear, fmt, dtype)
            continue
        made = BACKENDS[backend].make(linear, fmt, dtype)
        assert BACKENDS[backend].nbytes(fmt, (out, into), dtype) == stored_bytes(made).total, (out, into)


def test_a_matrix_that_its_backend_cannot_hold_is_refused_by_name() -> None:
    odd = WeightMatrix("body.layer.0.odd", "ffn", 0, (40, 100))
    with pytest.raises(
        QuantError,
        match=r"body.layer.0.odd cannot be stored as int4-g64: .*multiple of 64.*100 in a row; give another",
    ):
        stored_size(odd, "nf4", quant_backend="quanto-int4", device="cpu", dtype=torch.float32)
    assert (
        stored_size(odd, "nf4", quant_backend="quanto-int8", device="cpu", dtype=torch.float32)
        == 40 * 100 + 4 * 40 + 8
    )
    with pytest.raises(QuantError, match="quant backend 'cuda-4bit' cannot run here: it needs device cuda"):
        stored_size(odd, "nf4", quant_backend="cuda-4bit", device="cpu", dtype=torch.float32)


def test_a_plan_for_a_backend_that_is_not_here_ends_with_its_reason(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [
        "plan",
        "--profile",
        "smoke",
        "--task",
        "toy_sentences",
        "--budget",
        "12bits",
        "--set",
        "quant_backend=cuda-4bit",
    ]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert (
        "'cuda-4bit' cannot run here: it needs device cuda, this run is on cpu" in said
        and "Traceback" not in said
    )


@pytest.mark.parametrize("task", TASKS)
def test_the_outline_is_that_of_the_built_model(task: str, tmp_path: Path) -> None:
    spec = spec_of(task)
    place = locate(spec.model)
    built = open_model(spec, 2, "cpu", torch.float32)
    built.fill_rest()
    told = model_shapes(place, spec.kind, 2, torch.float32)
    assert told.matrices == [
        m for m in weight_matrices(built.model) if m.tied_to is None and m.name not in built.trained_modules
    ]
    assert told.shared == held_by_torch(built.model)
    assert told.parameters == built.parameters == sum(p.numel() for p in built.model.parameters())
    assert told.trained == sum(
        p.numel() for name in built.trained_modules for p in built.model.get_submodule(name).parameters()
    )
    assert told.model_type == built.model.config.model_type
    in_full = sum(4 * m.shape[0] * m.shape[1] for m in told.matrices)
    assert told.fixed + in_full == stored_bytes(built.model).total
    alone = tmp_path / "config.json"  # no weights beside it: fresh modules are told from the structure
    shutil.copy(Path(place) / "config.json", alone)
    assert model_shapes(str(alone), spec.kind, 2, torch.float32) == told


@pytest.mark.parametrize("backend", ["auto", "none", "cpu-4bit", "cpu-int8"])
@pytest.mark.parametrize("config", ["B-Q4", "Joint-2", "Joint-3"])
@pytest.mark.parametrize("task", TASKS)
def test_the_base_is_as_large_as_the_one_that_was_built(task: str, config: str, backend: str) -> None:
    spec = spec_of(task, config, quant_backend=backend)
    loaded = open_model(spec, 2, "cpu", torch.float32)
    arm = find_config(config, None)
    plans = make_plans(arm, loaded)
    store_base(spec, loaded, plans.bits, choose_init(spec, plans.ranks), "cpu", torch.float32)
    model, _ = arm.rank.attach(
        loaded.model, plans.ranks, total_steps=10, scale=2.0, heads=loaded.trained_modules, seed=0
    )
    skeleton, _ = unplanned_model(spec, 2, "cpu", torch.float32)
    words = {"quant_backend": backend, "device": "cpu", "dtype": torch.float32}
    assert base_bytes(skeleton, plans.bits, weight_matrices(skeleton), **words) == stored_bytes(
        model
    ).total - adapter_bytes(model)
