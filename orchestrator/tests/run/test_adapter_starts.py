"""Starts of adapters from data of the run: chosen by name, repeatable, and of the run's own matrices."""

from __future__ import annotations

import pytest
import torch
from bitrank.models.load import open_model
from bitrank.process.compute import Compute
from bitrank.run.adapter_init import STARTS, second_moments
from bitrank.run.build import Built, build_model
from bitrank.sensitivity.input_moments import gather
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


@pytest.fixture(scope="module", autouse=True)
def _moments() -> None:
    """Gathered in this process, which is cheaper than a process of its own."""
    gather(spec_of("QERA-Q4"))


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


def test_one_spec_gives_one_start() -> None:
    first, second = (dict(built(spec_of("QERA-Q4")).model.named_parameters()) for _ in range(2))
    assert all(torch.equal(parameter, second[name]) for name, parameter in first.items())
