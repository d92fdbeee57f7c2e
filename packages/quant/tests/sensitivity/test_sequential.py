"""Inputs of layers in a model whose layers are replaced one after the other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from bitrank_quant import QuantError, block_matrices, weight_matrices
from bitrank_quant.sensitivity import input_moments, sequential_inputs
from torch import Tensor, nn


def batches() -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    found = []
    for padding in (0, 5):
        ids = torch.randint(3, 96, (2, 12), generator=generator)
        mask = torch.ones_like(ids)
        mask[1, 12 - padding :] = 0
        found.append({"input_ids": ids, "attention_mask": mask})
    return found


def forward(model: Any, batch: Any) -> None:
    model(**batch)


def real(batch: Any) -> tuple[Tensor]:
    return (batch["attention_mask"].bool(),)


@pytest.mark.parametrize("name", ["bert", "distilbert", "gpt2", "llama", "gpt-neo", "t5"])
def test_without_replacements_the_inputs_are_those_of_one_pass(make: Any, name: str) -> None:
    model, inputs = make(name), {}
    matrices = block_matrices(model)
    given = batches()
    if name == "t5":
        given = [{**batch, "decoder_input_ids": batch["input_ids"]} for batch in given]
    (expected,) = input_moments(model, given, forward, matrices, real)
    for found in sequential_inputs(model, given, forward, matrices, real):
        inputs |= dict.fromkeys(found.names, found)
    assert inputs.keys() == expected.keys()
    for matrix, moments_II in expected.items():
        torch.testing.assert_close(inputs[matrix].moments_II, moments_II, rtol=1e-4, atol=1e-6)


def test_inputs_are_those_of_the_model_as_it_is_replaced_so_far(make: Any) -> None:
    """Every layer is scaled when its inputs arrive; the inputs of the next one are those of a plain pass."""
    model = make("llama")
    matrices = {matrix.name: matrix for matrix in block_matrices(model)}
    seen = []
    for found in sequential_inputs(model, batches(), forward, list(matrices.values()), real):
        rest = [matrices[name] for name in found.names]
        (now,) = input_moments(model, batches(), forward, rest, real)
        for name in found.names:
            torch.testing.assert_close(found.moments_II, now[name], rtol=1e-4, atol=1e-6)
            model.get_submodule(name).weight.data *= 1.1
        seen.append(found.names)
    assert seen[0] == tuple(f"model.layers.0.self_attn.{part}_proj" for part in "qkv")
    assert [name for names in seen for name in names] == list(matrices)


def test_no_batch_is_refused(make: Any) -> None:
    model = make("llama")
    with pytest.raises(QuantError, match="one calibration batch or more, got none"):
        next(sequential_inputs(model, [], forward, block_matrices(model)))


def test_inputs_that_are_not_finite_name_the_layer(make: Any) -> None:
    model = make("llama")
    model.model.layers[1].input_layernorm.weight.data[0] = torch.inf
    with pytest.raises(QuantError, match=r"inputs of model\.layers\.1\.self_attn\.q_proj .* not finite"):
        list(sequential_inputs(model, batches(), forward, block_matrices(model), real))


class Routed(nn.Module):
    """A block whose positions go to one of two layers, by the sign of their first number."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))
        self.last = nn.Linear(8, 8)

    def forward(self, hidden_states: Tensor) -> Tensor:
        inner = self.first(hidden_states)
        positive = hidden_states[..., 0] > 0
        added = inner.clone()
        for expert, chosen in zip(self.experts, (positive, ~positive), strict=True):
            if chosen.any():
                added[chosen] = added[chosen] + expert(inner[chosen])
        return hidden_states.sign() * self.last(added).abs()


class RoutedModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Routed() for _ in range(2))

    def forward(self, states: Tensor) -> Tensor:
        for layer in self.layers:
            states = layer(states)
        return states


@pytest.mark.parametrize("order", [(0, 1), (1, 0), (2, 0), (1, 2)])
def test_a_layer_that_some_batches_reach_has_their_inputs(order: tuple[int, int]) -> None:
    """Batches of positive states, of negative ones and of both: an expert is not reached by all of them."""
    torch.manual_seed(0)
    model, positive = RoutedModel(), torch.rand(1, 4, 8) + 0.1
    given = [(positive, -positive, torch.cat([positive, -positive]))[number] for number in order]

    def run(model: Any, batch: Tensor) -> None:
        model(batch)

    found = list(sequential_inputs(model, given, run, weight_matrices(model)))
    (expected,) = input_moments(model, given, run, weight_matrices(model))
    parts = ("first", "experts.0", "experts.1", "last")
    assert {name for one in found for name in one.names} == {
        f"layers.{layer}.{part}" for layer in range(2) for part in parts
    }
    names = [name for one in found for name in one.names]
    for layer in range(2):
        inside = [name.removeprefix(f"layers.{layer}.") for name in names if f"layers.{layer}." in name]
        assert inside[0] == "first" and inside[-1] == "last"
    for one in found:
        for name in one.names:
            torch.testing.assert_close(one.moments_II, expected[name], rtol=1e-4, atol=1e-6)
