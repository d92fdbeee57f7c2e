"""Decoding rounds once: a matrix decoded into 16 bits equals the one decoded into fp32 and then rounded."""

from __future__ import annotations

import pytest
import torch
from bitrank_quant import (
    BACKENDS,
    FORMATS,
    Affine,
    Codebook,
    Format,
    Int8Row,
    QuantWeight,
    decoder,
    kernels,
    parse_format,
)
from bitrank_quant.formats.float import Float
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

HALVES = [torch.bfloat16, torch.float16]
SHAPE = (48, 192)
ANY_FORMAT = st.one_of(
    st.builds(Affine, st.integers(2, 8), st.sampled_from([1, 7, 32, 64, 128])),
    st.builds(Codebook, st.sampled_from(["nf4", "fp4"]), st.sampled_from([5, 32, 64]), st.booleans()),
    st.builds(Int8Row, st.booleans()),
    st.builds(Float, st.sampled_from(["fp32", "fp16", "bf16"])),
)


def weights(shape: tuple[int, int] = SHAPE, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    size_O1 = torch.rand(shape[0], 1, generator=generator) * 0.1 + 1e-3
    return torch.randn(shape, generator=generator) * size_O1


@pytest.mark.parametrize("compiled", [True, False], ids=["kernels", "torch"])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("fmt", FORMATS.values(), ids=str)
def test_16_bit_decoding_is_the_fp32_decoding_rounded(
    fmt: Format,
    dtype: torch.dtype,
    compiled: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kernels, "switched_off", lambda: not compiled)
    quantized = QuantWeight(weights(), fmt, dtype)
    exact_OI = quantized.decode(torch.float32)
    assert torch.equal(quantized.decode(), exact_OI.to(dtype))
    ids = torch.tensor([3, 40, 3])
    assert torch.equal(quantized.decode_rows(ids), exact_OI[ids].to(dtype))
    for part in (slice(0, 16), slice(16, 48)):
        assert torch.equal(quantized.decode_part(part, dtype), exact_OI[part].to(dtype))


@settings(deadline=None, max_examples=150)
@given(
    ANY_FORMAT,
    st.integers(1, 6),
    st.integers(1, 300),
    st.sampled_from(HALVES),
    st.floats(1e-6, 1e3),
    st.integers(0, 2**31),
)
def test_any_format_of_any_shape_and_size_rounds_once(
    fmt: Format,
    rows: int,
    columns: int,
    dtype: torch.dtype,
    size: float,
    seed: int,
) -> None:
    encoded = fmt.encode(weights((rows, columns), seed) * size)
    exact = fmt.decode(encoded, (rows, columns), torch.float32)
    assert torch.equal(fmt.decode(encoded, (rows, columns), dtype), exact.to(dtype))


@pytest.mark.parametrize("compiled", [True, False], ids=["kernels", "torch"])
def test_int8_in_bf16_is_as_accurate_as_the_rounded_fp32_matrix(
    compiled: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rounding the scale first would add an error that is common to the whole row."""
    monkeypatch.setattr(kernels, "switched_off", lambda: not compiled)
    weight_OI = torch.randn(256, 512, generator=torch.Generator().manual_seed(0))
    encoded = Int8Row().encode(weight_OI)

    def error(made_OI: Tensor) -> float:
        return float((made_OI.double() - weight_OI).norm() / weight_OI.norm())

    exact = (encoded["codes"].double() * encoded["scale"].double()[:, None]).to(torch.bfloat16)
    scale_first = encoded["codes"].to(torch.bfloat16) * encoded["scale"].to(torch.bfloat16)[:, None]
    decoded = Int8Row().decode(encoded, (256, 512), torch.bfloat16)
    assert error(decoded) == pytest.approx(error(exact), rel=1e-5)
    assert error(decoded) < 0.99 * error(scale_first)


@pytest.mark.parametrize("compute", [torch.float32, *HALVES], ids=str)
@pytest.mark.parametrize("given_in", [torch.float32, *HALVES], ids=str)
@pytest.mark.parametrize("text", ["nf4", "nf4-dq", "fp4", "llm-int8"])
def test_layers_of_bitsandbytes_round_once_into_the_compute_dtype(
    text: str,
    given_in: torch.dtype,
    compute: torch.dtype,
) -> None:
    """For every original dtype of the weight; the same codes decoded into fp32 are the reference."""
    linear = nn.Linear(SHAPE[1], SHAPE[0], bias=False, dtype=given_in).requires_grad_(False)
    linear.weight.copy_(weights())
    make, fmt = BACKENDS["bitsandbytes"].make, parse_format(text)
    layers = {dtype: make(linear, fmt, dtype).train() for dtype in (torch.float32, compute)}
    decoded: dict[torch.dtype, Tensor] = {}
    for dtype, layer in layers.items():
        decode = decoder(layer)
        assert decode is not None
        decoded[dtype] = decode().clone()
    assert torch.equal(decoded[compute], decoded[torch.float32].to(compute))
    x_NI = torch.randn(4, SHAPE[1], generator=torch.Generator().manual_seed(1)).to(compute)
    assert layers[compute](x_NI).dtype == compute


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_int8_of_quanto_rounds_its_product_once(dtype: torch.dtype) -> None:
    """quanto stores the scale in 16 bits; its 4-bit layers round product and difference, like the decoder."""
    linear = nn.Linear(SHAPE[1], SHAPE[0], bias=False, dtype=dtype).requires_grad_(False)
    layer = BACKENDS["quanto"].make(linear, parse_format("int8"), dtype)
    decode = decoder(layer)
    assert decode is not None
    exact = layer.weight._data.float() * layer.weight._scale.float()
    assert torch.equal(decode(), exact.to(dtype))
