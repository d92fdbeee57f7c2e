"""The quantizer of a run: taken from the plan, recorded, and applied matrix by matrix to the codes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bitrank
import pytest
import torch
from bitrank.errors import UserError
from bitrank.models.load import open_model
from bitrank.process.compute import Compute
from bitrank.run.build import build_model
from bitrank.run.quantizers import encoder, encoder_of
from bitrank.run.record import Record
from bitrank.sensitivity.input_moments import StoredMoments, gather, moments_place
from bitrank.spec.configs import config_of_plan
from bitrank.spec.make_spec import make_spec
from bitrank.spec.plan_file import check_plan_data
from bitrank.spec.profiles import find_profile
from bitrank.spec.run_spec import RunSpec
from bitrank.spec.tiny_models import TINY
from bitrank_quant import (
    QuantError,
    block_matrices,
    parse_format,
    quantize,
    stored_weight,
    weight_matrices,
)
from bitrank_trainer import ALONE
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM

TASKS = {"toy_articles": "tiny-llama", "toy_sentences": "tiny-bert"}


def spec_of(task: str, **overrides: Any) -> RunSpec:
    return make_spec(find_profile("smoke"), "B-Q4", task, overrides)


def plan_of(spec: RunSpec, fmt: str = "int3-g64") -> dict[str, Any]:
    """Every matrix in ``fmt``, rank 4 in every block matrix."""
    compute = Compute.of(spec)
    loaded = open_model(spec, 2, compute.device, compute.dtype)
    free = [m for m in weight_matrices(loaded.model) if m.tied_to is None]
    plan = {
        "precision": {m.name: fmt for m in free if m.name not in loaded.trained_modules},
        "ranks": {m.name: 4 for m in block_matrices(loaded.model)},
    }
    return check_plan_data(plan, "the test's plan")


def built(spec: RunSpec, plan: dict[str, Any], record: Record | None = None) -> Any:
    config = config_of_plan(plan, "the test's plan")
    return build_model(spec, Compute.of(spec), config, 2, 10, record=record).model


def weights(spec: RunSpec) -> Any:
    compute = Compute.of(spec)
    loaded = open_model(spec, 2, compute.device, compute.dtype)
    loaded.fill_rest()
    return loaded.model


@pytest.mark.parametrize("quantizer", ["search", "gptq"])
@pytest.mark.parametrize("task", TASKS)
def test_every_matrix_holds_the_codes_of_the_quantizer(task: str, quantizer: str) -> None:
    spec = spec_of(task, quantizer=quantizer, fused=False)
    moments = StoredMoments(gather(spec))
    plan = plan_of(spec)
    model, floats = built(spec, plan).base_model.model, weights(spec)
    fmt, differing = parse_format("int3-g64"), 0
    for name in plan["precision"]:
        layer = model.get_submodule(name)
        held_OI = stored_weight(getattr(layer, "base_layer", layer)).float()
        weight_OI = floats.get_submodule(name).weight.detach()
        shape = (weight_OI.shape[0], weight_OI.shape[1])
        codes = quantize(weight_OI, fmt, quantizer, moments.of(name, shape[1]))
        assert torch.equal(held_OI, fmt.decode(codes, shape, Compute.of(spec).dtype).float()), name
        rounded_OI = fmt.decode(fmt.encode(weight_OI), shape, torch.float32)
        differing += not torch.equal(held_OI, rounded_OI)
    assert differing == len(plan["precision"])


def test_a_residual_start_repairs_the_error_of_the_quantizer() -> None:
    spec = spec_of("toy_articles", quantizer="gptq", init="loftq", fused=False)
    plan, floats = plan_of(spec), weights(spec)
    model = built(spec, plan).base_model.model
    closer = 0
    for name in plan["ranks"]:
        layer = model.get_submodule(name)
        held_OI = stored_weight(layer.base_layer).float()
        started_OI = held_OI + layer.get_delta_weight("default").float()
        weight_OI = floats.get_submodule(name).weight
        closer += bool((weight_OI - started_OI).norm() < 0.999 * (weight_OI - held_OI).norm())
    assert closer == len(plan["ranks"])


@pytest.mark.parametrize("quantizer", ["rtn", "gptq"])
@pytest.mark.parametrize("fmt", ["int3-g32", "int5-g64", "int6-g128", "int4-g64-dq", "nf3", "nf3-dq"])
def test_fused_and_plain_layers_give_the_same_loss_and_gradients(fmt: str, quantizer: str) -> None:
    ids = torch.randint(3, 26, (2, 16), generator=torch.Generator().manual_seed(0))
    losses, gradients = [], []
    for fused in (True, False):
        spec = spec_of("toy_articles", quantizer=quantizer, fused=fused, init="loftq", dtype="fp32")
        model = built(spec, plan_of(spec, fmt))
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        losses.append(loss.detach())
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-4, atol=1e-4)
    assert gradients[0].keys() == gradients[1].keys()
    assert any(float(gradient.norm()) > 0 for gradient in gradients[0].values())
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-3, atol=1e-4)


def test_the_plan_names_the_quantizer_and_the_run_records_it(tmp_path: Path) -> None:
    plan = plan_of(spec_of("toy_articles")) | {"quantizer": "search"}
    bitrank.save_plan(plan, tmp_path / "plan.json")
    spec = spec_of("toy_articles", plan=str(tmp_path / "plan.json"))
    assert spec.quantizer == "search"
    assert spec_of("toy_articles", plan=str(tmp_path / "plan.json"), quantizer="gptq").quantizer == "gptq"
    (tmp_path / "run").mkdir()
    built(spec, plan, Record(tmp_path / "run", ALONE))
    assert json.loads((tmp_path / "run" / "plan.json").read_text())["quantizer"] == "search"


def test_the_first_run_gathers_moments_in_a_process_of_its_own(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("BITRANK_CACHE", str(tmp_path))
    spec = spec_of("toy_articles", quantizer="search")
    assert not moments_place(spec).exists()
    assert encoder(spec) is not None
    assert (moments_place(spec) / "0.safetensors").is_file()


def test_rounding_gathers_nothing(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("BITRANK_CACHE", str(tmp_path))
    assert encoder(spec_of("toy_articles")) is None
    assert not list(tmp_path.glob("inputs/*"))


def test_an_unknown_quantizer_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"quantizer .* rtn, search, gptq"):
        spec_of("toy_articles", quantizer="awq")
    bitrank.save_plan({"precision": {}, "ranks": {}, "quantizer": "awq"}, tmp_path / "plan.json")
    with pytest.raises(UserError, match=r"quantizer .* rtn, search, gptq"):
        spec_of("toy_articles", plan=str(tmp_path / "plan.json"))


def test_a_backend_that_encodes_by_itself_is_refused_with_a_quantizer() -> None:
    spec = spec_of("toy_articles", quantizer="search", quant_backend="quanto-int4")
    with pytest.raises(QuantError, match="quanto encodes weights itself"):
        built(spec, plan_of(spec, "int4-g64"))


def llama() -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=1, vocab_size=100))


def test_apply_with_inputs_reduces_the_output_error_of_a_layer() -> None:
    name, batch = "model.layers.0.mlp.up_proj", {"input_ids": torch.arange(96).view(2, 48)}
    floats = llama()
    seen: list[torch.Tensor] = []
    floats.get_submodule(name).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        floats(**batch)
    errors = {}
    for quantizer in ("rtn", "search", "gptq"):
        model = llama()
        plan = {"precision": {name: "int2-g64"}, "quantizer": quantizer}
        bitrank.apply(model, plan, inputs=[batch])
        layer, own = model.get_submodule(name), floats.get_submodule(name)
        errors[quantizer] = float((layer(seen[0]) - own(seen[0])).norm())
    assert errors["gptq"] < errors["search"] < errors["rtn"]


def test_apply_with_a_loader_gives_the_codes_of_its_list() -> None:
    rows = [{"input_ids": ids} for ids in torch.arange(96).view(8, 12)]
    name = "model.layers.0.mlp.up_proj"
    loader: DataLoader[Any] = DataLoader(rows, batch_size=3)  # type: ignore[arg-type]
    made = {}
    for kind, inputs in {"loader": loader, "list": list(loader)}.items():
        model = llama()
        bitrank.apply(model, {"precision": {name: "int2-g64"}, "quantizer": "gptq"}, inputs=inputs)
        made[kind] = stored_weight(model.get_submodule(name))
    assert torch.equal(made["loader"], made["list"])


def test_a_loader_that_shuffles_is_read_once() -> None:
    batch = {"input_ids": torch.arange(96).view(2, 48)}

    class Once(list[Any]):
        """Batches that end after the first pass."""

        def __iter__(self) -> Iterator[Any]:
            yield from [self.pop() for _ in range(len(self))]

    plan = {"precision": {"model.layers.0.mlp.up_proj": "int2-g64"}, "quantizer": "gptq"}
    assert bitrank.apply(llama(), plan, inputs=Once([batch]))


def test_error_of_apply_without_inputs_names_the_need_of_the_quantizer() -> None:
    with pytest.raises(UserError, match=r"gptq reduces errors at the inputs .* give inputs="):
        bitrank.apply(llama(), {"precision": {}, "quantizer": "gptq"})


def test_a_quantizer_that_fails_names_the_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    model = TINY["tiny-llama"]()
    batch = {"input_ids": torch.tensor([[1, 2, 3]])}
    name = block_matrices(model)[0].name
    encode = encoder_of(model, "gptq", [batch], {name: "int4-g64"})
    monkeypatch.setattr("bitrank_quant.quantizers.gptq._TRIES", 0)
    assert encode is not None
    with pytest.raises(QuantError, match=rf"{name}: the second moments .* cannot be factorized"):
        encode(name, model.get_submodule(name).weight, parse_format("int4-g64"))
