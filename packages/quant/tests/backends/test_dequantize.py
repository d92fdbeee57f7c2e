"""The decoded matrix equals the one that the layer multiplies by, for every backend."""

from __future__ import annotations

import pytest
import torch
from bitrank_quant import BACKENDS, QuantLinear, QuantWeight, decoder, kernels, parse_format, stored_weight
from bitrank_quant.backends import scratch as buffers
from bitrank_quant.backends.bitsandbytes import decode_on_cpu
from bitrank_quant.kernels.status import kernels_status
from torch import nn

BACKENDS_AND_FORMATS = [
    ("bitsandbytes", "nf4"),
    ("bitsandbytes", "nf4-dq"),
    ("bitsandbytes", "fp4"),
    ("quanto", "int8"),
    ("quanto", "int4-g64"),
    *(("torch", name) for name in ("int8", "nf4", "nf4-dq", "int4-g64", "int3-g64", "int2-g64", "bf16")),
]


@pytest.mark.parametrize(("backend", "name"), BACKENDS_AND_FORMATS)
def test_the_decoded_matrix_reproduces_the_output_of_the_layer(backend: str, name: str) -> None:
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


@pytest.mark.parametrize(("backend", "name"), BACKENDS_AND_FORMATS)
def test_a_parameter_starts_from_the_stored_weight(backend: str, name: str) -> None:
    linear = nn.Linear(128, 64, bias=False, dtype=torch.bfloat16).requires_grad_(False)
    layer = BACKENDS[backend].make(linear, parse_format(name), torch.bfloat16)
    made = nn.Parameter(stored_weight(layer).clone())
    assert type(made) is nn.Parameter and made.requires_grad and torch.equal(made, stored_weight(layer))
    made.data.zero_()
    assert stored_weight(layer).any()


def test_rows_that_end_within_a_byte_are_decoded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitrank_quant.backends.reference._PRODUCT", 120)
    x_NI = torch.randn(5, 12)
    layer = QuantLinear(QuantWeight(torch.randn(151, 12), parse_format("int3-g4"), torch.float32), None)
    assert torch.equal(layer(x_NI), x_NI @ layer.weight.T)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", [name for backend, name in BACKENDS_AND_FORMATS if backend == "torch"])
def test_a_product_in_row_ranges_equals_the_whole_product(
    monkeypatch: pytest.MonkeyPatch, name: str, dtype: torch.dtype
) -> None:
    """Forward and backward equal those of the whole matrix, which is not split if no decoding is needed."""
    torch.manual_seed(0)
    weight_OI, bias_O, x_NI = (
        torch.randn(150, 128).bfloat16(),
        torch.randn(150).to(dtype),
        torch.randn(7, 128).to(dtype),
    )
    layer = QuantLinear(QuantWeight(weight_OI, parse_format(name), dtype), bias_O)
    results = []
    for together in (2**20, 128 * 64):
        monkeypatch.setattr("bitrank_quant.backends.reference._PRODUCT", together)
        x_NI.grad, cut = None, len(layer.quantized.parts(dtype))
        assert cut == (1 if together == 2**20 or (name, dtype) == ("bf16", torch.bfloat16) else 3)
        y_NO = layer(x_NI.requires_grad_())
        y_NO.backward(torch.ones_like(y_NO))
        assert x_NI.grad is not None
        results.append((y_NO.detach().float(), x_NI.grad.float()))
    rounding = 1e-5 if dtype == torch.float32 else 2e-2
    for whole, parts in zip(*results, strict=True):
        assert (whole - parts).norm() <= rounding * whole.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["nf4", "nf4-dq", "fp4", "fp4-dq"])
@pytest.mark.parametrize("shape", [(64, 128), (33, 192), (600, 64), (16, 96)])
def test_kernels_decode_bitsandbytes_codes_as_bitsandbytes_does(
    name: str, dtype: torch.dtype, shape: tuple[int, int]
) -> None:
    from bitsandbytes.functional import dequantize_4bit

    generator = torch.Generator().manual_seed(1)
    linear = nn.Linear(shape[1], shape[0], bias=False).requires_grad_(False)
    linear.weight.copy_(
        torch.randn(shape, generator=generator) * torch.rand(shape[0], 1, generator=generator)
    )
    layer = BACKENDS["bitsandbytes"].make(linear.to(dtype), parse_format(name), dtype)
    wanted = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    mine = decode_on_cpu(layer.weight.data, layer.weight.quant_state, dtype)
    if not kernels_status().startswith("compiled") or shape[1] % 64:
        assert mine is None
        mine = decoder(layer)()
    # At most one rounding apart, where bitsandbytes uses AVX-512.
    torch.testing.assert_close(mine, wanted, rtol=torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize(("backend", "name"), [pair for pair in BACKENDS_AND_FORMATS if pair[1] != "bf16"])
def test_decoders_share_one_buffer_and_stored_weights_do_not(backend: str, name: str) -> None:
    if not kernels_status().startswith("compiled"):
        pytest.skip("plain torch makes a new matrix each time")
    torch.manual_seed(0)
    linears = [
        nn.Linear(128, rows, bias=False, dtype=torch.bfloat16).requires_grad_(False) for rows in (96, 64)
    ]
    layers = [BACKENDS[backend].make(linear, parse_format(name), torch.bfloat16) for linear in linears]
    large, small = (decoder(layer) for layer in layers)
    assert large is not None and small is not None
    own = [stored_weight(layer) for layer in layers]
    scratch = large().data_ptr()
    assert torch.equal(large(), own[0]) and torch.equal(small(), own[1]) and small().data_ptr() == scratch
    assert torch.equal(large(), own[0]) and scratch not in {weight.data_ptr() for weight in own}


@pytest.mark.parametrize(("backend", "name"), BACKENDS_AND_FORMATS)
def test_a_decoder_follows_changes_of_codes_and_scales(backend: str, name: str) -> None:
    """In place, by new memory under the same parameter or buffer, and by a new parameter or buffer."""
    torch.manual_seed(0)
    linears = [nn.Linear(128, 64, bias=False, dtype=torch.bfloat16).requires_grad_(False) for _ in range(3)]
    layer, other, third = (
        BACKENDS[backend].make(linear, parse_format(name), torch.bfloat16) for linear in linears
    )
    decode, wanted = decoder(layer), [stored_weight(one).clone() for one in (layer, other, third)]
    assert decode is not None and torch.equal(decode(), wanted[0])
    if backend == "torch":
        for key, tensor in other.quantized.tensors.items():
            getattr(layer.quantized, key).data = tensor
        assert torch.equal(decode(), wanted[1])
        for key, tensor in third.quantized.tensors.items():
            setattr(layer.quantized, key, tensor)
        assert torch.equal(decode(), wanted[2])
        for key, tensor in other.quantized.tensors.items():
            getattr(layer.quantized, key).copy_(tensor)
        assert torch.equal(decode(), wanted[1])
        return
    if backend == "bitsandbytes":
        layer.weight.data, layer.weight.quant_state = other.weight.data, other.weight.quant_state
        assert torch.equal(decode(), wanted[1])
    layer.weight = third.weight
    assert torch.equal(decode(), wanted[2])


def test_a_larger_buffer_replaces_the_smaller_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffers, "_buffers", {})
    small = buffers.scratch((2, 3), torch.bfloat16)
    assert (
        buffers.scratch((2, 3), torch.bfloat16) is small
        and buffers.scratch((3, 2), torch.bfloat16).data_ptr() == small.data_ptr()
    )
    large = buffers.scratch((2, 4), torch.bfloat16)
    again = buffers.scratch((2, 3), torch.bfloat16)
    assert again.data_ptr() == large.data_ptr() != small.data_ptr() and again.shape == (2, 3)
    assert buffers.scratch((1, 1), torch.float32).dtype == torch.float32


def test_16_bit_weights_multiplied_in_fp32_use_the_shared_buffer() -> None:
    linear = nn.Linear(128, 64, bias=False).requires_grad_(False)
    layer = BACKENDS["torch"].make(linear, parse_format("bf16"), torch.float32)
    decode = decoder(layer)
    assert decode is not None
    scratch = decode().data_ptr()
    assert decode().data_ptr() == scratch and torch.equal(decode(), linear.weight.bfloat16().float())
    assert stored_weight(layer).data_ptr() != scratch


def test_an_unquantized_layer_gives_its_own_weight() -> None:
    linear = nn.Linear(8, 4)
    decode = decoder(linear)
    assert decode is not None and decode() is linear.weight


def test_layers_without_a_decoded_matrix_have_no_decoder() -> None:
    linear = nn.Linear(64, 64, dtype=torch.bfloat16).requires_grad_(False)
    assert decoder(BACKENDS["torch"].make(linear, parse_format("llm-int8"), torch.bfloat16)) is None
    assert decoder(nn.Conv1d(4, 4, 1)) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("compiled", [True, False])
def test_llm_int8_of_bitsandbytes_trains_with_its_decoded_matrix(
    dtype: torch.dtype, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Output and gradient are bit-identical to bitsandbytes' training on a CPU, outlier columns or not."""
    if not compiled:
        monkeypatch.setattr(kernels, "switched_off", lambda: True)
    torch.manual_seed(0)
    linear = nn.Linear(192, 96, dtype=dtype).requires_grad_(False)
    layer = BACKENDS["bitsandbytes"].make(linear, parse_format("llm-int8"), dtype)
    decode = decoder(layer)
    assert decode is not None and decode.applies()
    x_NI = torch.randn(40, 192).to(dtype)
    x_NI[:, 7] *= 20  # an outlier column
    x_NI.requires_grad_()
    before = decode().clone()
    expected = layer(x_NI)
    assert torch.equal(nn.functional.linear(x_NI, decode(), layer.bias), expected)
    (gradient,) = torch.autograd.grad(expected, x_NI, expected.detach())
    assert torch.equal(expected.detach() @ decode(), gradient)
    assert torch.equal(decode(), before)  # although the codes have moved from the weight to `layer.state`


def test_the_llm_int8_decoder_does_not_apply_in_evaluation() -> None:
    """It rounds activations to 8 bits outside outlier columns, so the decoder does not apply."""
    torch.manual_seed(0)
    linear = nn.Linear(192, 96, bias=False).requires_grad_(False)
    layer = BACKENDS["bitsandbytes"].make(linear, parse_format("llm-int8"), torch.float32)
    decode = decoder(layer)
    assert decode is not None
    x_NI = torch.randn(40, 192)
    x_NI[:, 7] *= 20
    exact = x_NI @ decode().T
    evaluated = layer.eval()(x_NI)
    assert not decode.applies() and 1e-4 < (evaluated - exact).norm() / exact.norm() < 0.02
    layer.train()
    assert decode.applies() and torch.equal(x_NI @ decode().T, exact)
    layer.state.CB = layer.state.CB.to("meta")  # on other devices activations are rounded in training too
    assert not decode.applies()


def test_a_foreign_llm_int8_layer_has_no_decoder() -> None:
    """Its compute dtype is unknown."""
    from bitsandbytes.nn import Linear8bitLt

    assert decoder(Linear8bitLt(64, 64, has_fp16_weights=False)) is None
