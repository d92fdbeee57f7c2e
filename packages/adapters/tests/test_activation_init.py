"""EVA: components and ranks of PEFT's own implementation, without a change of the outputs."""

from __future__ import annotations

import pytest
import torch
from bitrank_adapters import (
    ActivationStart,
    AdapterError,
    adapted,
    attach_lora,
    ranks_by_variance,
    uniform_ranks,
)
from peft import EvaConfig, LoraConfig, get_eva_state_dict
from torch import Tensor

SQUARE = [f"model.layers.{n}.self_attn.{part}" for n in range(2) for part in ("q_proj", "o_proj")]


def principal_components(model, names: list[str], ids: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Directions (K, in) and shares (K,) of the covariance of each matrix's inputs."""
    seen: dict[str, Tensor] = {}
    hooks = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, inputs, name=name: seen.update({name: inputs[0].detach().flatten(0, -2)})
        )
        for name in names
    ]
    model(input_ids=ids)
    for hook in hooks:
        hook.remove()
    found = {}
    for name, x_NI in seen.items():
        _, values, directions = torch.linalg.svd(x_NI - x_NI.mean(0), full_matrices=False)
        found[name] = directions, values.square() / values.square().sum()
    return found


def test_components_and_ranks_are_those_of_peft(make, ids) -> None:
    """On matrices of one shape, where ranks and numbers are one budget."""
    model = make("llama")
    config = LoraConfig(
        r=3, target_modules=SQUARE, init_lora_weights="eva", eva_config=EvaConfig(rho=2.0, tau=0.999)
    )
    theirs = get_eva_state_dict(
        model,
        [{"input_ids": ids}],
        config,
        prepare_model_inputs_fn=None,
        prepare_layer_inputs_fn=None,
        show_progress_bar=False,
    )
    found = principal_components(model, SQUARE, ids)
    plan = uniform_ranks(SQUARE, 3)
    ranks = ranks_by_variance({n: found[n][1] for n in SQUARE}, plan, dict.fromkeys(SQUARE, (32, 32)))
    assert sum(ranks.values()) == sum(plan.values()) and len(set(ranks.values())) > 1
    assert ranks == {name: len(rows) for name, rows in theirs.items()}
    model = attach_lora(model, ranks)
    ActivationStart(ranks, lambda name: found[name][0]).write(model)
    for name, layer in adapted(model):
        rows = layer.lora_A["default"].weight.detach()
        cosines = torch.nn.functional.cosine_similarity(rows, theirs[name], dim=1).abs()
        assert cosines.min() > 0.99, name
        assert torch.allclose(rows.norm(dim=1), torch.ones(len(rows)), rtol=1e-4)


def test_the_start_changes_no_output(make, ids) -> None:
    model = make("llama")
    before = model(input_ids=ids).logits
    found = principal_components(model, SQUARE, ids)
    model = attach_lora(model, uniform_ranks(SQUARE, 4))
    ActivationStart(uniform_ranks(SQUARE, 4), lambda name: found[name][0]).write(model)
    assert torch.equal(model(input_ids=ids).logits, before)


def test_a_rank_above_the_known_components_is_refused(make) -> None:
    model = attach_lora(make("llama"), {SQUARE[0]: 4})
    with pytest.raises(AdapterError, match="has rank 4, and 3 principal components"):
        ActivationStart({SQUARE[0]: 4}, lambda name: torch.eye(32)[:3]).write(model)
