"""Tensors that no plan can name, stored in 16 bits: results, gradients, bytes and autograd's memory."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from bitrank_quant import left_out, store_in_16_bits, stored_bytes
from torch import Tensor, nn


class Experts(nn.Module):
    """Expert matrices as three-dimensional parameters, all applied in turn."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.up = nn.Parameter(torch.randn(4, 16, 8, generator=generator), requires_grad=False)
        self.down = nn.Parameter(torch.randn(4, 8, 16, generator=generator), requires_grad=False)
        self.norm = nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        for expert in range(4):
            x = x + torch.tanh(self.norm(x) @ self.up[expert].T) @ self.down[expert].T
        return x


def model() -> nn.Sequential:
    return nn.Sequential(Experts(), Experts())


def rounded() -> nn.Sequential:
    """The reference: weights rounded to bf16 and stored in fp32."""
    made = model()
    for parameter in made.parameters():
        if parameter.ndim == 3:
            parameter.data = parameter.data.bfloat16().float()
    return made


def in_16_bits() -> nn.Sequential:
    made = model()
    store_in_16_bits(made, left_out(made))
    return made


def forward_backward(made: nn.Module) -> tuple[Tensor, Tensor]:
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
    out = made(x)
    out.square().sum().backward()
    return out.detach(), x.grad


def test_outputs_and_gradients_equal_those_of_rounded_weights() -> None:
    for found, expected in zip(forward_backward(in_16_bits()), forward_backward(rounded()), strict=True):
        assert torch.equal(found, expected)


def test_stored_bytes_are_two_per_weight() -> None:
    numbers = sum(one.numbers for one in left_out(model()))
    assert numbers == 2 * 2 * 4 * 16 * 8
    assert stored_bytes(model()).total - stored_bytes(in_16_bits()).total == 2 * numbers
    assert stored_bytes(in_16_bits()).modules["0"] == numbers


def test_autograd_keeps_no_decoded_tensor() -> None:
    made, alive = in_16_bits(), []
    x = torch.randn(5, 8).requires_grad_()
    inner = Experts.forward

    def recorded(self: Experts, x: Tensor) -> Tensor:
        alive.append(self.up.untyped_storage()._weak_ref())
        return inner(self, x)

    Experts.forward = recorded  # type: ignore[method-assign]
    try:
        out = made(x)
    finally:
        Experts.forward = inner  # type: ignore[method-assign]
    assert len(alive) == 2
    assert all(torch.UntypedStorage._expired(one) for one in alive)
    out.sum().backward()


def test_modules_in_16_bits_are_unchanged() -> None:
    made = model().bfloat16()
    before = [type(module) for module in made]
    store_in_16_bits(made, left_out(made))
    assert [type(module) for module in made] == before and stored_bytes(made).total == stored_bytes(
        model().bfloat16()
    ).total


def test_state_dict_keys_are_unchanged_and_copies_are_equivalent() -> None:
    made = in_16_bits()
    assert made.state_dict().keys() == model().state_dict().keys()
    assert made.state_dict()["0.up"].dtype == torch.bfloat16 and made[0].up.dtype == torch.float32
    expected = forward_backward(made)[0]
    for other in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert torch.equal(forward_backward(other)[0], expected)


@pytest.mark.parametrize("name", ["llama", "bert", "gpt2"])
def test_dense_models_have_no_unquantizable_tensors(make, name: str) -> None:
    assert left_out(make(name)) == []
