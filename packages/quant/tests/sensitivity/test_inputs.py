"""Second moments of inputs against a plain sum over the inputs of every layer."""

from __future__ import annotations

import pytest
import torch
from bitrank_quant import QuantError, weight_matrices
from bitrank_quant.sensitivity import input_moments
from bitrank_quant.sensitivity import inputs as inputs_module
from torch import Tensor


def batches() -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    found = []
    for padding in (0, 5):
        ids = torch.randint(3, 96, (2, 12), generator=generator)
        mask = torch.ones_like(ids)
        mask[1, 12 - padding :] = 0
        found.append({"input_ids": ids, "attention_mask": mask})
    return found


def forward(model, batch) -> None:
    model(**batch)


def real(batch) -> list[Tensor]:
    return [batch["attention_mask"].bool()]


def plain_moments(model, name: str) -> Tensor:
    """E[x xᵀ] over the tokens of all batches, one position at a time, in fp64."""
    total, count = 0, 0
    for batch in batches():
        seen: list[Tensor] = []
        handle = model.get_submodule(name).register_forward_pre_hook(
            lambda _, args, seen=seen: seen.append(args[0])
        )
        with torch.no_grad():
            model(**batch)
        handle.remove()
        for x_BTI in seen:
            x_NI = x_BTI[real(batch)[0]] if x_BTI.dim() == 3 else x_BTI
            for x_I in x_NI.double():
                total, count = total + x_I.outer(x_I), count + 1
    return total / count


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "gpt-neo"])
def test_moments_equal_a_plain_sum_over_the_tokens(make, name: str) -> None:
    model = make(name)
    matrices = weight_matrices(model)
    (found,) = input_moments(model, batches(), forward, matrices, real)
    linear = [m for m in matrices if m.role != "embedding"]
    assert set(found) == {m.tied_to or m.name for m in linear}
    for matrix in linear:
        expected_II = plain_moments(model, matrix.name)
        torch.testing.assert_close(
            found[matrix.tied_to or matrix.name].double(), expected_II, rtol=1e-4, atol=1e-6
        )


def test_a_small_limit_takes_more_passes_and_gives_the_same(make, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("llama")
    matrices = weight_matrices(model)
    (whole,) = input_moments(model, batches(), forward, matrices, real)
    monkeypatch.setattr(inputs_module, "LEAST_LIMIT", 1)
    monkeypatch.setattr(model, "parameters", lambda: iter(()))
    passes = list(input_moments(model, batches(), forward, matrices, real))
    assert len(passes) == len(whole)
    assert all(torch.equal(part[name], whole[name]) for part in passes for name in part)


def test_no_batch_is_refused(make) -> None:
    model = make("llama")
    with pytest.raises(QuantError, match="one calibration batch or more, got none"):
        next(input_moments(model, [], forward, weight_matrices(model)))


def test_inputs_that_are_not_finite_name_the_matrix(make) -> None:
    model = make("llama")
    model.model.layers[1].input_layernorm.weight.data[0] = torch.inf
    with pytest.raises(QuantError, match=r"inputs of model\.layers\.1\.self_attn\.q_proj .* are not finite"):
        list(input_moments(model, batches(), forward, weight_matrices(model)))
