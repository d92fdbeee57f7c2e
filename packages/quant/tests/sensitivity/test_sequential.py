"""Inputs of layers in a model whose layers are replaced one after the other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from bitrank_quant import QuantError, block_matrices, corrected_weight
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


def real(batch: Any) -> Tensor:
    return batch["attention_mask"].bool()


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
        torch.testing.assert_close(inputs[matrix].now_II, moments_II, rtol=1e-4, atol=1e-6)
        cross_II = inputs[matrix].cross_II
        assert (cross_II is None) == (name == "t5"), "blocks of an encoder-decoder form no single chain"
        if cross_II is not None:
            torch.testing.assert_close(cross_II, moments_II, rtol=1e-4, atol=1e-6)


def test_inputs_are_those_of_the_model_as_it_is_replaced_so_far(make: Any) -> None:
    """Every layer is scaled when its inputs arrive; the inputs of the next one are those of a plain pass."""
    model, unchanged = make("llama"), make("llama")
    matrices = {matrix.name: matrix for matrix in block_matrices(model)}
    (before,) = input_moments(unchanged, batches(), forward, list(matrices.values()), real)
    seen = []
    for found in sequential_inputs(model, batches(), forward, list(matrices.values()), real):
        rest = [matrices[name] for name in found.names]
        (now,) = input_moments(model, batches(), forward, rest, real)
        for name in found.names:
            torch.testing.assert_close(found.now_II, now[name], rtol=1e-4, atol=1e-6)
            model.get_submodule(name).weight.data *= 1.1
        assert found.cross_II is not None
        # E[x x̂ᵀ]² ≤ E[x²] E[x̂²], entry by entry, with equality for equal inputs.
        bound_II = before[found.names[0]].diagonal()[:, None] * found.now_II.diagonal()
        assert bool((found.cross_II.square() <= bound_II * (1 + 1e-4)).all())
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


def test_corrected_weight_is_the_least_squares_solution() -> None:
    generator = torch.Generator().manual_seed(0)
    x_NI = torch.randn(400, 12, generator=generator)
    now_NI = x_NI @ torch.randn(12, 12, generator=generator) + 0.3 * torch.randn(400, 12, generator=generator)
    weight_OI = torch.randn(5, 12, generator=generator)
    now_II, cross_II = now_NI.T @ now_NI / 400, x_NI.T @ now_NI / 400
    expected_IO = torch.linalg.lstsq(now_NI.double(), (x_NI @ weight_OI.T).double()).solution
    corrected_OI = corrected_weight(weight_OI, now_II, cross_II, damping=1e-9)
    torch.testing.assert_close(corrected_OI.double(), expected_IO.T, rtol=1e-3, atol=1e-4)
    damped_OI = corrected_weight(weight_OI, now_II, cross_II, damping=1e9)
    torch.testing.assert_close(damped_OI, weight_OI, rtol=1e-5, atol=1e-5)
    same_OI = corrected_weight(weight_OI, now_II, now_II)
    torch.testing.assert_close(same_OI, weight_OI, rtol=1e-5, atol=1e-5)


def test_inputs_that_are_always_zero_leave_the_weight() -> None:
    weight_OI, zero_II = nn.Linear(4, 3).weight.detach(), torch.zeros(4, 4)
    torch.testing.assert_close(corrected_weight(weight_OI, zero_II, zero_II), weight_OI)
