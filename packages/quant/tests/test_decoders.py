"""A decoded matrix is the one that its layer multiplies by, whoever holds it."""

from __future__ import annotations

import pytest
import torch
from bitrank_quant import BACKENDS, decoder, parse_format
from torch import nn

HELD = [("bitsandbytes", "nf4"), ("bitsandbytes", "nf4-dq"), ("bitsandbytes", "fp4"), ("quanto", "int8"), ("quanto", "int4-g64"),
        *(("torch", name) for name in ("int8", "nf4", "nf4-dq", "int4-g64", "int3-g64", "int2-g64", "bf16"))]  # fmt: skip


@pytest.mark.parametrize(("backend", "name"), HELD)
def test_the_decoded_matrix_is_what_the_layer_multiplies_by(backend: str, name: str) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(128, 64, bias=False, dtype=torch.bfloat16).requires_grad_(False)
    layer = BACKENDS[backend].make(linear, parse_format(name), torch.bfloat16)
    decode = decoder(layer)
    assert decode is not None
    weight_OI = decode()
    assert weight_OI.shape == (64, 128) and weight_OI.dtype == torch.bfloat16
    x_NI = torch.randn(16, 128, dtype=torch.bfloat16)
    expected, got = layer(x_NI).float(), (x_NI @ weight_OI.T).float()
    assert (got - expected).norm() < 0.01 * expected.norm()


def test_an_unquantized_layer_gives_its_own_weight() -> None:
    linear = nn.Linear(8, 4)
    decode = decoder(linear)
    assert decode is not None and decode() is linear.weight


def test_layers_that_multiply_in_their_own_way_have_none() -> None:
    linear = nn.Linear(64, 64, dtype=torch.bfloat16).requires_grad_(False)
    for backend in ("torch", "bitsandbytes"):
        assert decoder(BACKENDS[backend].make(linear, parse_format("llm-int8"), torch.bfloat16)) is None
    assert decoder(nn.Conv1d(4, 4, 1)) is None
