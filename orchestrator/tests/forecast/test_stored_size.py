"""Sizes computed from shapes equal those of built layers and models, for every format and backend."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from bitrank.cli.main import main
from bitrank.forecast.dry_run import unplanned_model
from bitrank.forecast.model_shapes import model_shapes
from bitrank.forecast.stored_size import Storage, base_bytes, held_by_torch, mask_bytes, stored_size
from bitrank.models.load import open_model
from bitrank.models.locate import locate
from bitrank.process.compute import Compute
from bitrank.run.adapter_init import choose_init
from bitrank.run.plans import make_plans, store_base
from bitrank.spec.configs import find_config
from bitrank.spec.make_spec import make_spec
from bitrank.spec.profiles import find_profile
from bitrank.spec.rule_interface import AttachOptions
from bitrank.spec.run_spec import RunSpec
from bitrank_adapters import AdapterScale, adapter_memory
from bitrank_quant import (
    BACKENDS,
    FORMATS,
    Encoding,
    QuantError,
    WeightMatrix,
    apply_precision,
    choose_backend,
    parse_format,
    quantize,
    stored_bytes,
    weight_matrices,
)
from torch import nn
from transformers import AutoModelForCausalLM, GPTNeoConfig, LlamaConfig

TASKS = ("toy_sentences", "toy_articles")
ODD = ((128, 64), (33, 64), (7, 192), (40, 96), (5, 7), (64, 100), (1, 64), (1, 65), (2, 64), (300, 320))
BACKEND_FORMATS = [
    (b.name, text)
    for b in BACKENDS.values()
    for text in (*FORMATS, "int4-g32", "nf4-g128", "nf4-g32-dq")
    if b.serves(parse_format(text))
]


def spec_of(task: str, config: str = "B-FP", **given: object) -> RunSpec:
    return make_spec(find_profile("smoke"), config, task, given)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("backend", "text"), BACKEND_FORMATS)
def test_computed_bytes_of_a_matrix_equal_those_of_the_built_layer(
    backend: str, text: str, dtype: torch.dtype
) -> None:
    fmt = parse_format(text)
    for out, into in ODD:
        linear = nn.Linear(into, out, bias=False, dtype=dtype).requires_grad_(False)
        if BACKENDS[backend].misfit(fmt, (out, into)):
            with pytest.raises(ValueError, match="64"):  # quanto's own message lacks the matrix's name
                BACKENDS[backend].make(linear, fmt, dtype)
            continue
        made = BACKENDS[backend].make(linear, fmt, dtype)
        assert BACKENDS[backend].nbytes(fmt, (out, into), dtype) == stored_bytes(made).total, (out, into)


def test_matrix_that_its_backend_cannot_store_is_refused_by_name() -> None:
    odd = WeightMatrix("body.layer.0.odd", "ffn", 0, (40, 100))
    with pytest.raises(
        QuantError,
        match=r"body.layer.0.odd cannot be stored as int4-g64: .*multiple of 64.*100 in a row; give another",
    ):
        stored_size(odd, "nf4", Storage("quanto-int4", "cpu", torch.float32))
    assert stored_size(odd, "nf4", Storage("quanto-int8", "cpu", torch.float32)) == 40 * 100 + 4 * 40 + 8
    with pytest.raises(QuantError, match="quant backend 'cuda-4bit' cannot run here: it needs device cuda"):
        stored_size(odd, "nf4", Storage("cuda-4bit", "cpu", torch.float32))


def test_what_a_run_refuses_is_not_counted() -> None:
    """An embedding whose rows end within a byte, and codes of a quantizer in a backend that rounds itself."""
    table = WeightMatrix("table", "embedding", None, (40, 32))
    with pytest.raises(
        QuantError, match=r"table cannot be stored as int3-g12: rows of 32 weights do not end on"
    ):
        stored_size(table, "int3-g12", Storage("auto", "cpu", torch.float32), shared=True)
    block = WeightMatrix("body.layer.0.fc", "ffn", 0, (40, 64))
    assert stored_size(block, "int3-g12", Storage("auto", "cpu", torch.float32)) > 0
    for backend in ("quanto-int4", "quanto-int8"):
        assert stored_size(block, "nf4", Storage(backend, "cpu", torch.float32)) > 0
        coded = Storage(backend, "cpu", torch.float32, coded=True)
        with pytest.raises(QuantError, match=r"body.layer.0.fc cannot be .* quanto encodes weights itself"):
            stored_size(block, "nf4", coded)


def test_plan_for_an_unavailable_backend_exits_with_2_and_the_reason(
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = [
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
    assert main(options) == 2
    printed = capsys.readouterr().err
    assert (
        "'cuda-4bit' cannot run here: it needs device cuda, this run is on cpu" in printed
        and "Traceback" not in printed
    )


@pytest.mark.parametrize("task", TASKS)
def test_model_shapes_equal_those_of_the_built_model(task: str, tmp_path: Path) -> None:
    spec = spec_of(task)
    place = locate(spec.model)
    built = open_model(spec, 2, "cpu", torch.float32)
    built.fill_rest()
    shapes = model_shapes(place, spec.kind, 2, torch.float32)
    assert shapes.matrices == [
        m for m in weight_matrices(built.model) if m.tied_to is None and m.name not in built.trained_modules
    ]
    assert shapes.shared == held_by_torch(built.model)
    assert shapes.parameters == built.parameters == sum(p.numel() for p in built.model.parameters())
    assert shapes.trained == sum(
        p.numel() for name in built.trained_modules for p in built.model.get_submodule(name).parameters()
    )
    assert shapes.model_type == built.model.config.model_type
    full_bytes = sum(4 * m.shape[0] * m.shape[1] for m in shapes.matrices)
    assert shapes.fixed + full_bytes == stored_bytes(built.model).total
    lone_config = tmp_path / "config.json"  # without weights, new modules follow from the structure
    shutil.copy(Path(place) / "config.json", lone_config)
    assert model_shapes(str(lone_config), spec.kind, 2, torch.float32) == shapes


def test_causal_masks_in_buffers_are_memory_and_no_stored_bytes(tmp_path: Path) -> None:
    """GPT-Neo has one in each layer, of one byte for each pair of positions; no file stores them."""
    fixed = {}
    for positions in (64, 128):
        config = GPTNeoConfig(
            hidden_size=32,
            num_layers=2,
            attention_types=[[["global", "local"], 1]],
            num_heads=4,
            max_position_embeddings=positions,
            vocab_size=100,
        )
        built = AutoModelForCausalLM.from_config(config)
        config.save_pretrained(tmp_path / str(positions))
        shapes = model_shapes(str(tmp_path / str(positions)), "language-modelling", dtype=torch.float32)
        assert {m.name: m.shape for m in shapes.matrices}["transformer.wpe"] == (positions, 32)
        full_bytes = sum(4 * m.shape[0] * m.shape[1] for m in shapes.matrices)
        assert stored_bytes(built).total == shapes.fixed + full_bytes == 4 * shapes.parameters
        assert mask_bytes(built) == 2 * positions**2
        fixed[positions] = shapes.fixed
    assert fixed[64] == fixed[128]


def test_rotary_frequencies_in_buffers_are_counted() -> None:
    config = LlamaConfig(
        hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4, vocab_size=100
    )
    built = AutoModelForCausalLM.from_config(config)
    buffers = sum(buffer.numel() * buffer.element_size() for buffer in built.buffers())
    assert stored_bytes(built).total == 4 * sum(p.numel() for p in built.parameters()) + buffers
    assert buffers >= 4 * 8 and mask_bytes(built) == 0


@pytest.mark.parametrize("backend", ["auto", "none", "cpu-4bit", "cpu-int8"])
@pytest.mark.parametrize("config", ["B-Q4", "Joint-2", "Joint-3"])
@pytest.mark.parametrize("task", TASKS)
def test_computed_base_bytes_equal_those_of_the_built_model(task: str, config: str, backend: str) -> None:
    spec = spec_of(task, config, quant_backend=backend)
    loaded = open_model(spec, 2, "cpu", torch.float32)
    arm = find_config(config, None)
    plans = make_plans(arm, loaded)
    store_base(spec, loaded, plans.formats, choose_init(spec, plans.ranks), "cpu", torch.float32)
    scale = AdapterScale(2.0, "constant")
    options = AttachOptions(scale, loaded.trained_modules, seed=0, total_steps=10)
    model, _ = arm.rank.attach(loaded.model, plans.ranks, options)
    empty_model = unplanned_model(spec, 2, Compute("cpu", "fp32", threads=None)).model
    storage = Storage(backend, "cpu", torch.float32)
    assert base_bytes(empty_model, plans.formats, weight_matrices(empty_model), storage) == stored_bytes(
        model
    ).total - adapter_memory(model)


@pytest.mark.parametrize("width", [96, 128, 100])
def test_codes_of_a_quantizer_are_counted_and_stored_where_rows_are_no_whole_blocks(width: int) -> None:
    model = nn.Sequential()
    model.add_module("layers", nn.ModuleList([nn.ModuleDict({"fc": nn.Linear(width, 40, bias=False)})]))
    fmt = parse_format("nf4-dq")
    encoding = Encoding(encode=lambda name, weight_OI, fmt: quantize(weight_OI, fmt, "search", None))
    (matrix,) = weight_matrices(model)
    counted = stored_size(matrix, "nf4-dq", Storage("auto", "cpu", torch.float32, coded=True))
    applied = apply_precision(model, {matrix.name: "nf4-dq"}, compute_dtype=torch.float32, encoding=encoding)
    assert (applied[matrix.name].backend == "bitsandbytes") == (width % 64 == 0)
    assert stored_bytes(model).total == counted
    assert choose_backend(fmt, "cpu", torch.float32).name == "bitsandbytes"
