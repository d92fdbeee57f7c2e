"""Starts of adapters from data of the run: chosen by name, repeatable, and of the run's own matrices."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from bitrank.errors import UserError
from bitrank.models.load import open_model
from bitrank.process.compute import Compute
from bitrank.run.adapter_init import STARTS, second_moments, start_data
from bitrank.run.build import Built, build_model
from bitrank.sensitivity.calibration import calibration
from bitrank.sensitivity.input_moments import gather
from bitrank.sensitivity.start_data import COMPONENTS, gather_start_data
from bitrank.spec.configs import find_config
from bitrank.spec.inits import INITS
from bitrank.spec.make_spec import make_spec
from bitrank.spec.profiles import find_profile
from bitrank.spec.run_spec import RunSpec
from bitrank_adapters import adapted
from bitrank_quant import stored_weight
from torch import Tensor


def spec_of(arm: str, **fields: object) -> RunSpec:
    return make_spec(find_profile("smoke"), arm, "toy_articles", {"dtype": "fp32", "fused": False, **fields})


@pytest.fixture(autouse=True)
def _gathered(place: Path) -> None:
    """Gathered by the first test in this process, which is cheaper than a process of its own."""
    gather(spec_of("QERA-Q4"))
    gather_start_data(spec_of("EVA-Q4"))


def built(spec: RunSpec) -> Built:
    return build_model(spec, Compute.of(spec), find_config(spec.config), 0, 20)


def originals(spec: RunSpec) -> dict[str, Tensor]:
    loaded = open_model(spec, 0, "cpu", torch.float32)
    loaded.fill_rest()
    return dict(loaded.model.named_parameters())


def test_every_initialization_has_a_start_and_no_other() -> None:
    assert STARTS.keys() == INITS.keys()


@pytest.mark.parametrize("arm", ["QERA-Q4", "CLoQ-Q4"])
def test_adapters_of_qera_and_cloq_are_the_dense_optimum_for_the_runs_inputs(arm: str) -> None:
    """The optimum from singular values of E R^½, with the codes that the run stored."""
    spec = spec_of(arm)
    whole, moments = originals(spec), second_moments(spec)
    layers = dict(adapted(built(spec).model))
    assert layers
    for name, layer in layers.items():
        error_OI = whole[f"{name}.weight"].double() - stored_weight(layer.base_layer).double()
        powers_I, basis_II = torch.linalg.eigh(moments(name).double())
        root_II = (basis_II * powers_I.clamp_min(0).sqrt()) @ basis_II.T
        values_K = torch.linalg.svdvals(error_OI @ root_II)
        rank = layer.lora_A["default"].out_features
        left_OI = error_OI - layer.get_delta_weight("default").double()
        least = float(values_K[rank:].norm())
        assert float((left_OI @ root_II).norm()) == pytest.approx(least, rel=0.01, abs=1e-5)
        assert least < 0.9 * float(values_K.norm())


ALLOCATING = [name for name, init in INITS.items() if init.allocates]


@pytest.mark.parametrize("arm", ["QERA-Q4", "CorDA-Q4", "LoRA-GA-Q4", "EVA-Q4", "GoRA-Q4"])
def test_one_spec_gives_one_start_whose_adapter_is_no_larger_than_rank_8(arm: str) -> None:
    first, second = built(spec_of(arm)), built(spec_of(arm))
    others = dict(second.model.named_parameters())
    assert all(torch.equal(parameter, others[name]) for name, parameter in first.model.named_parameters())
    uniform = built(spec_of("B-Q4"))
    assert first.hook.stored_bytes() <= uniform.hook.stored_bytes()
    ranks, plain = first.hook.ranks(), uniform.hook.ranks()
    allocates = INITS[spec_of(arm).init].allocates
    assert (ranks == plain) != allocates
    if allocates:
        assert first.hook.stored_bytes() > 0.9 * uniform.hook.stored_bytes()


@pytest.mark.parametrize("arm", ["CorDA-Q4", "LoRA-GA-Q4", "PiSSA-Q4"])
def test_stored_remainder_and_adapter_are_the_matrix_but_for_rounding(arm: str) -> None:
    spec = spec_of(arm)
    whole = originals(spec)
    for name, layer in adapted(built(spec).model):
        weight_OI = whole[f"{name}.weight"]
        sum_OI = stored_weight(layer.base_layer).float() + layer.get_delta_weight("default")
        rest_OI = weight_OI - layer.get_delta_weight("default")
        assert float((weight_OI - sum_OI).norm()) < 0.13 * float(rest_OI.norm())
        assert float(layer.get_delta_weight("default").norm()) > 0.05 * float(weight_OI.norm())


def test_gradients_are_those_of_the_mean_loss_on_the_calibration_data() -> None:
    """Against autograd on the whole model, matrix by matrix."""
    spec = spec_of("GoRA-Q4")
    ready, data = calibration(spec), start_data(spec)
    names = [matrix.name for matrix in ready.matrices if matrix.adaptable]
    assert data.importance.keys() == set(names)
    weights = [ready.model.get_submodule(name).weight.requires_grad_(True) for name in names]
    total, units = torch.zeros(()), 0
    for batch in ready.many:
        logits_NC, labels_N = ready.forward(ready.model, batch)
        total = total + torch.nn.functional.cross_entropy(logits_NC, labels_N, reduction="sum")
        units += int((labels_N >= 0).sum())
    found = torch.autograd.grad(total / units, weights)
    for name, weight, gradient_OI in zip(names, weights, found, strict=True):
        assert torch.allclose(
            data.gradient(name), gradient_OI, rtol=1e-3, atol=1e-3 * gradient_OI.abs().max()
        )
        assert data.importance[name] == pytest.approx(float((weight * gradient_OI).abs().mean()), rel=1e-3)


def test_components_are_orthonormal_and_their_shares_sum_to_one() -> None:
    data = start_data(spec_of("EVA-Q4"))
    for name in data.importance:
        directions_KI, shares_K = data.directions(name), data.shares(name)
        assert len(directions_KI) == len(shares_K) == min(COMPONENTS, directions_KI.shape[1])
        assert torch.allclose(directions_KI @ directions_KI.T, torch.eye(len(shares_K)), atol=1e-4)
        assert torch.equal(shares_K, shares_K.sort(descending=True).values)
        assert float(shares_K.sum()) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("init", ALLOCATING)
def test_a_plan_with_ranks_refuses_a_start_that_chooses_them(init: str, tmp_path: Path) -> None:
    plan = tmp_path / "given.json"
    plan.write_text(json.dumps({"precision": {}, "ranks": {"model.layers.0.mlp.up_proj": 4}}))
    with pytest.raises(UserError, match=f"init={init}: it would replace the ranks of the plan"):
        spec_of("B-Q4", plan=str(plan), init=init)


def test_a_matrix_outside_the_blocks_has_no_gradient() -> None:
    with pytest.raises(UserError, match=r"no gradient of nowhere is known: .* init=default"):
        start_data(spec_of("GoRA-Q4")).gradient("nowhere")


@pytest.mark.parametrize("arm", ["EVA-Q4", "LoRA-GA-Q4", "GoRA-Q4"])
def test_starts_from_gradients_and_components_work_on_encoder_decoders(arm: str) -> None:
    spec = make_spec(find_profile("smoke"), arm, "toy_summaries", {"model": "tiny-t5", "dtype": "fp32"})
    gather_start_data(spec)
    data = start_data(spec)
    blocks = {matrix.name for matrix in calibration(spec).matrices if matrix.adaptable}
    assert data.importance.keys() == blocks and any("EncDecAttention" in name for name in blocks)
    model = build_model(spec, Compute.of(spec), find_config(spec.config), 0, 20).model
    assert {name for name, _ in adapted(model)} <= blocks
