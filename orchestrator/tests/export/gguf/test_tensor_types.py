"""Tensor types decode to the weights they encode, keep our codes, and are chosen by bits and bytes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from bitrank.export.gguf.tensor_types import TENSOR_TYPES, type_for
from bitrank_quant import parse_format

SHAPE = (48, 512)
WEIGHT_OI = 0.02 * torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
# Relative errors of rounding a normal matrix; ggml's own encoders are within a few per cent of these.
LARGEST_ERROR = {
    "F32": 0.0,
    "F16": 3e-4,
    "BF16": 2e-3,
    "Q8_0": 0.006,
    "Q6_K": 0.018,
    "Q5_K": 0.038,
    "Q5_1": 0.040,
    "Q5_0": 0.045,
    "Q4_K": 0.075,
    "Q4_1": 0.082,
    "Q4_0": 0.090,
    "Q3_K": 0.150,
    "Q2_K": 0.280,
}


@pytest.mark.parametrize("name", TENSOR_TYPES)
def test_the_librarys_decoder_returns_the_encoded_weights_to_the_precision_of_the_type(name: str) -> None:
    kind, weight_OI = TENSOR_TYPES[name], WEIGHT_OI.numpy()
    rows = kind.encode(weight_OI)
    assert 8 * rows.nbytes == kind.bits_per_weight * weight_OI.size
    error = np.linalg.norm(kind.decode(rows) - weight_OI) / np.linalg.norm(weight_OI)
    assert LARGEST_ERROR[name] / 2 <= error <= LARGEST_ERROR[name]


@pytest.mark.parametrize("name", TENSOR_TYPES)
@pytest.mark.parametrize("value", [0.0, 0.5, -0.5, 3e-3])
def test_a_constant_matrix_is_encoded_nearly_exactly(name: str, value: float) -> None:
    weight_OI = np.full((2, 256), value, np.float32)
    decoded_OI = TENSOR_TYPES[name].decode(TENSOR_TYPES[name].encode(weight_OI))
    assert np.abs(decoded_OI - weight_OI).max() <= 0.01 * abs(value)


@pytest.mark.parametrize(("text", "name"), [("int4-g32", "Q4_1"), ("int5-g32", "Q5_1"), ("bf16", "BF16")])
def test_our_formats_are_converted_without_any_change(text: str, name: str) -> None:
    fmt, kind = parse_format(text), TENSOR_TYPES[name]
    tensors = fmt.encode(WEIGHT_OI)
    ours_OI = fmt.decode(tensors, SHAPE, torch.float32)
    rows = kind.encode(ours_OI.numpy()) if kind.from_codes is None else kind.from_codes(tensors, SHAPE)
    # Scale and minimum are bf16, which fp16 represents; the sum of the two differs by a rounding in fp32.
    assert np.allclose(kind.decode(rows), ours_OI.numpy(), rtol=0, atol=1e-8)
    assert rows.nbytes == fmt.nbytes(SHAPE)


def test_int8_rows_keep_their_codes_and_round_the_scale_to_fp16() -> None:
    fmt, kind = parse_format("int8"), TENSOR_TYPES["Q8_0"]
    tensors = fmt.encode(WEIGHT_OI)
    assert kind.from_codes is not None
    rows = kind.from_codes(tensors, SHAPE)
    codes_OI = rows.reshape(-1, 34)[:, 2:].view(np.int8).reshape(SHAPE)
    assert np.array_equal(codes_OI, tensors["codes"].numpy())
    ours_OI = fmt.decode(tensors, SHAPE, torch.float32).numpy()
    assert np.allclose(kind.decode(rows), ours_OI, rtol=2**-11, atol=0)


@pytest.mark.parametrize(
    ("text", "columns", "name"),
    [
        ("int4-g32", 512, "Q4_1"),
        ("int5-g32", 512, "Q5_1"),
        ("int8", 512, "Q8_0"),
        ("llm-int8", 512, "Q8_0"),
        ("int8-g64", 512, "Q8_0"),
        ("int7-g64", 512, "Q6_K"),
        ("int6-g64", 512, "Q6_K"),
        ("int6-g64", 576, "Q5_1"),
        ("int5-g64", 512, "Q5_K"),
        ("int5-g64", 576, "Q5_0"),
        ("int4-g64", 512, "Q4_K"),
        ("int4-g64", 576, "Q4_0"),
        ("nf4-dq", 512, "Q4_K"),
        ("nf3", 512, "Q3_K"),
        ("int3-g64", 576, "Q4_0"),  # no type of three bits has blocks that fit such rows
        ("int2-g64", 512, "Q2_K"),
        ("fp32", 7, "F32"),
        ("bf16", 7, "BF16"),
        ("nf4", 40, "BF16"),  # no quantized type fits
    ],
)
def test_the_nearest_type_at_or_below_the_bits_is_chosen(text: str, columns: int, name: str) -> None:
    assert type_for(parse_format(text), (8, columns)).name == name


@pytest.mark.parametrize("name", [kind.name for kind in TENSOR_TYPES.values() if kind.chosen])
def test_codes_that_a_quantizer_chooses_are_converted_without_change(name: str) -> None:
    kind = TENSOR_TYPES[name]
    assert kind.chosen is not None
    fmt = parse_format(kind.chosen.format)
    tensors = fmt.encode(WEIGHT_OI)
    rows = kind.chosen.from_codes(tensors, SHAPE)
    expected_OI = fmt.decode(tensors, SHAPE, torch.float32)
    assert np.allclose(kind.decode(rows), expected_OI.numpy(), rtol=0, atol=1e-8)
    assert 8 * rows.nbytes == kind.bits_per_weight * WEIGHT_OI.numel()
