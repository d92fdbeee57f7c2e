"""Formats: known errors, exact bytes, a text form that parses back, and codes equal to bitsandbytes'."""

from __future__ import annotations

from typing import Any

import bitrank_quant.backends.reference as reference
import pytest
import torch
from bitrank_quant import (
    FORMATS,
    Affine,
    Codebook,
    QuantError,
    QuantWeight,
    Symmetric,
    little_endian_words,
    parse_format,
)
from bitrank_quant.formats.codebook import CODEBOOKS, dynamic_map_8bit
from bitrank_quant.formats.integer import Int8Row
from bitrank_quant.packing import pack_bits, packed_bytes, unpack_bits
from hypothesis import given, settings
from hypothesis import strategies as st


@pytest.fixture(scope="module")
def normal() -> torch.Tensor:
    return torch.randn(768, 768, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("int8", 0.0077),
        ("llm-int8", 0.0077),
        ("int4-g64", 0.0897),
        ("nf4", 0.092),
        ("nf4-dq", 0.092),
        ("fp4", 0.122),
    ],
)
def test_relative_error_on_a_standard_normal_equals_the_known_value(
    text: str, error: float, normal: torch.Tensor
) -> None:
    fmt = parse_format(text)
    decoded = fmt.decode(fmt.encode(normal), (768, 768), torch.float32)
    assert float((normal - decoded).norm() / normal.norm()) == pytest.approx(error, rel=0.01)


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=str)
@pytest.mark.parametrize("shape", [(3, 64), (5, 100), (17, 256), (1, 7)])
def test_predicted_bytes_are_the_bytes_of_the_tensors(fmt, shape) -> None:
    encoded = fmt.encode(torch.randn(*shape))
    assert sum(tensor.nbytes for tensor in encoded.values()) == fmt.nbytes(shape)
    assert fmt.decode(encoded, shape, torch.float32).shape == shape


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=str)
def test_text_form_parses_back(fmt) -> None:
    assert parse_format(str(fmt)) == fmt
    low, high = fmt.value_range
    assert low < high


@given(st.integers(2, 8), st.integers(1, 512), st.sampled_from(["nf4", "nf3", "fp4"]), st.booleans())
def test_any_format_of_the_grammar_parses_back(bits: int, group: int, book: str, double: bool) -> None:
    for fmt in (Affine(bits, group, double), Codebook(book, group, double), Symmetric(bits, group)):
        assert parse_format(str(fmt)) == fmt


@given(st.integers(2, 8), st.integers(0, 70), st.integers(0, 2**31))
def test_packing_is_lossless_and_without_gaps(bits: int, count: int, seed: int) -> None:
    codes = torch.randint(
        0, 2**bits, (count,), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )
    packed = pack_bits(codes, bits)
    assert packed.numel() == packed_bytes(count, bits)
    assert torch.equal(unpack_bits(packed, bits, count), codes)


@given(st.integers(2, 8), st.integers(1, 3), st.integers(1, 4), st.integers(0, 2**31))
def test_words_are_one_bit_stream_per_row_with_the_lowest_bits_first(
    bits: int, rows: int, words: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes_OI = torch.randint(0, 2**bits, (rows, 32 * words), dtype=torch.uint8, generator=generator)
    packed_OW = little_endian_words(codes_OI, bits)
    assert packed_OW.shape == (rows, bits * words)
    for codes_I, packed_W in zip(codes_OI.tolist(), packed_OW.tolist(), strict=True):
        stream = sum(code << (bits * place) for place, code in enumerate(codes_I))
        assert sum((word & 0xFFFFFFFF) << (32 * place) for place, word in enumerate(packed_W)) == stream


def test_rows_that_end_within_a_word_are_refused() -> None:
    with pytest.raises(QuantError, match=r"20 codes of 3 bits end within a 32-bit word; .* multiple of 32"):
        little_endian_words(torch.zeros(2, 20, dtype=torch.uint8), 3)
    assert little_endian_words(torch.full((1, 4), 255, dtype=torch.uint8), 8).tolist() == [[-1]]


@pytest.mark.parametrize("bits", [4, 8])
def test_symmetric_values_are_whole_multiples_of_the_scale_and_include_zero(bits: int) -> None:
    fmt = Symmetric(bits, 32)
    weight_OI = torch.randn(6, 64, generator=torch.Generator().manual_seed(0))
    weight_OI[:, 5] = 0
    encoded = fmt.encode(weight_OI)
    decoded_OI = fmt.decode(encoded, (6, 64), torch.float32)
    scale_OG = encoded["scale"].float().view(6, 2)
    steps_OGB = decoded_OI.view(6, 2, 32) / scale_OG[:, :, None]
    assert torch.equal(steps_OGB, steps_OGB.round())
    low, high = fmt.value_range
    assert low <= float(steps_OGB.min()) <= float(steps_OGB.max()) <= high
    assert torch.equal(decoded_OI[:, 5], torch.zeros(6))
    half_step_OG = scale_OG * (0.5 + 2**bits * 2**-9)  # bf16 scales can clip the ends
    assert bool(((decoded_OI - weight_OI).abs().view(6, 2, 32) <= half_step_OG[:, :, None]).all())


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 8), st.integers(1, 5), st.integers(1, 130), st.floats(1e-6, 1e4), st.integers(0, 2**31))
def test_affine_error_is_at_most_half_a_step(
    bits: int, rows: int, columns: int, scale: float, seed: int
) -> None:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * scale
    fmt = Affine(bits, 64)
    encoded = fmt.encode(weight)
    error = (weight - fmt.decode(encoded, (rows, columns), torch.float32)).abs().max()
    # Half a step, plus the clipping that rounding scale and minimum to bf16 can cause at the ends.
    assert error <= encoded["scale"].float().max() * (0.5 + 2**bits * 2**-8) + weight.abs().max() * 2**-8


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=str)
def test_zero_stays_zero(fmt) -> None:
    decoded = fmt.decode(fmt.encode(torch.zeros(2, 128)), (2, 128), torch.float32)
    assert torch.isfinite(decoded).all()
    assert decoded.abs().max() < 1e-30


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=str)
@pytest.mark.parametrize(
    "wanted", [torch.tensor([3, 299, 3, 0, -1]), slice(0, 7), slice(120, 290), slice(299, 300)], ids=str
)
def test_decoded_rows_equal_rows_of_the_decoded_matrix(fmt, wanted) -> None:
    # 900 block scales, three per row: they fill three outer blocks and part of a fourth, and the first two
    # outer blocks end within a row.
    weight = torch.randn(300, 192, generator=torch.Generator().manual_seed(0))
    encoded = fmt.encode(weight)
    whole = fmt.decode(encoded, (300, 192), torch.float32)
    assert torch.equal(
        fmt.decode(fmt.rows(encoded, wanted, 300), tuple(whole[wanted].shape), torch.float32), whole[wanted]
    )


@pytest.mark.parametrize("book", ["nf4", "fp4"])
def test_codes_are_those_of_bitsandbytes(book: str, normal: torch.Tensor) -> None:
    import bitsandbytes.functional as bnb

    codes, state = bnb.quantize_4bit(normal, quant_type=book)
    ours = Codebook(book).encode(normal)
    assert torch.equal(codes.flatten(), ours["codes"])
    assert torch.equal(state.absmax, ours["absmax"])
    assert torch.equal(dynamic_map_8bit(), bnb.create_dynamic_map())


@pytest.mark.parametrize("name", ["ternary", "block64-ternary2"])
def test_a_format_whose_name_begins_with_other_bits_is_refused(name: str, monkeypatch: Any) -> None:
    class Ternary(Int8Row):
        bits = 2

        def __str__(self) -> str:
            return name

    monkeypatch.setitem(FORMATS, name, Ternary())
    with pytest.raises(QuantError, match=f"its bits, but '{name}' has 2 bits"):
        parse_format(name)


def test_unknown_format_names_the_nearest() -> None:
    with pytest.raises(QuantError, match=r"unknown format 'nf5'.*nf4"):
        parse_format("nf5")
    with pytest.raises(QuantError, match="int9-g64"):
        parse_format("int9-g64")


@pytest.mark.parametrize(
    "name",
    [
        *[
            "int8",
            "int3-g64",
            "int4-g64",
            "sym4-g64",
            "nf4",
            "int4-g64-dq",
            "nf3",
            "nf4-dq",
            "fp4-dq",
            "bf16",
        ],
        # Rows that end within a byte: 100 codes of 3, 5 or 6 bits, or 105 of 4.
        *["int3-g20", "sym3-g20", "sym5-g20", "int6-g20", "nf3-g20", "nf3-g20-dq", "nf4-g35"],
    ],
)
def test_encoding_in_parts_changes_nothing(name: str, monkeypatch) -> None:
    monkeypatch.setattr(reference, "_PART", 64 * 100)
    weight_OI = torch.randn(201, 100, generator=torch.Generator().manual_seed(0))
    whole, parts = (
        parse_format(name).encode(weight_OI),
        reference.encode_in_parts(parse_format(name), weight_OI),
    )
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("int2-g3", (2, 3)),
        ("sym2-g3", (2, 3)),
        ("int3-g43", (2, 768)),
        ("int3-g43-dq", (2, 768)),
        ("nf3-g30", (2, 30)),
        ("nf3-g30-dq", (2, 30)),
        ("int6-g4", (3, 4)),
    ],
)
def test_rows_that_share_a_byte_are_refused_and_decoded_as_a_whole(
    name: str, shape: tuple[int, int], monkeypatch
) -> None:
    """The bytes of all rows divide by the number of rows, but a row has no whole number of them."""
    monkeypatch.setattr(reference, "_PRODUCT", 1)
    weight = QuantWeight(torch.randn(*shape), parse_format(name), torch.float32)
    assert weight.tensors["codes"].numel() % shape[0] == 0
    with pytest.raises(
        QuantError, match=f"do not end on a byte: a row has .* codes of {weight.fmt.bits} bits"
    ):
        weight.decode_rows(torch.tensor([1]))
    assert weight.parts(torch.float32) == [slice(0, shape[0])]


def normal_map(bits: int) -> torch.Tensor:
    """Quantiles of N(0, 1) with an exact zero, by the rule of QLoRA's appendix E (its 4-bit offset is the
    mean of 1 - 1/32 and 1 - 1/30)."""
    half = 2 ** (bits - 1)
    offset = 1 - (1 / (4 * half) + 1 / (4 * half - 2)) / 2
    upper = torch.special.ndtri(torch.linspace(offset, 0.5, half + 1, dtype=torch.double)[:-1])
    lower = -torch.special.ndtri(torch.linspace(offset, 0.5, half, dtype=torch.double)[:-1])
    values = torch.cat([upper, lower, torch.zeros(1, dtype=torch.double)]).sort().values
    return (values / values.max()).float()


@pytest.mark.parametrize(("book", "bits"), [("nf4", 4), ("nf3", 3)])
def test_normal_float_books_are_the_quantiles_of_a_normal(book: str, bits: int) -> None:
    assert torch.allclose(CODEBOOKS[book], normal_map(bits), atol=1e-4)
    assert Codebook(book).bits == bits


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from(
        ["int2-g32", "int3-g128-dq", "int5-g32", "int6-g64", "int6-g128-dq", "nf3", "nf3-g128-dq"]
    ),
    st.integers(1, 5),
    st.integers(1, 300),
    st.integers(0, 2**31),
)
def test_codes_of_any_shape_survive_packing(text: str, rows: int, columns: int, seed: int) -> None:
    fmt = parse_format(text)
    encoded = fmt.encode(torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)))
    assert sum(tensor.nbytes for tensor in encoded.values()) == fmt.nbytes((rows, columns))
    decoded = fmt.decode(encoded, (rows, columns), torch.float32)
    groups = rows * -(-columns // fmt.block)
    codes = unpack_bits(encoded["codes"], fmt.bits, groups * fmt.block)
    assert torch.equal(pack_bits(codes, fmt.bits), encoded["codes"])
    assert decoded.shape == (rows, columns)
    assert torch.isfinite(decoded).all()


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_double_quantization_saves_half_the_scales_and_little_accuracy(
    bits: int, normal: torch.Tensor
) -> None:
    errors = {}
    for fmt in (Affine(bits, 64), Affine(bits, 64, double_quant=True)):
        encoded = fmt.encode(normal)
        errors[fmt.double_quant] = float((normal - fmt.decode(encoded, (768, 768), torch.float32)).norm())
    assert errors[True] < 1.03 * errors[False]
    saved = Affine(bits, 64).nbytes((768, 768)) - Affine(bits, 64, True).nbytes((768, 768))
    groups = 768 * 12
    assert saved == 2 * (groups - 4 * groups // 256 - 4)


def test_an_update_that_is_constant_within_groups_changes_minima_only(normal) -> None:
    """The merge of QA-LoRA: codes and scales stay, and the sum is exact in fp32."""
    fmt, weight_OI = Affine(3, 32), normal[:64, :128]
    update_OG = torch.randn(64, 4, generator=torch.Generator().manual_seed(1))
    update_OI = update_OG.repeat_interleave(32, dim=1)
    before = fmt.encode(weight_OI)
    after = fmt.add_to_groups(before, update_OI)
    assert after is not None
    assert all(torch.equal(after[name], before[name]) for name in ("codes", "scale"))
    expected_OI = fmt.decode(before, (64, 128), torch.float32) + update_OI
    assert torch.allclose(fmt.decode(after, (64, 128), torch.float32), expected_OI, atol=1e-6)


@pytest.mark.parametrize("width", [128, 120])
def test_groups_of_padded_rows_take_updates_too(normal, width: int) -> None:
    fmt, weight_OI = Affine(4, 32), normal[:8, :width]
    update_OI = torch.arange(4.0).repeat_interleave(32)[None, :width].expand(8, -1)
    after = fmt.add_to_groups(fmt.encode(weight_OI), update_OI)
    assert after is not None
    expected_OI = fmt.decode(fmt.encode(weight_OI), (8, width), torch.float32) + update_OI
    assert torch.allclose(fmt.decode(after, (8, width), torch.float32), expected_OI, atol=1e-6)


def test_other_updates_are_left_to_a_quantizer(normal) -> None:
    weight_OI, constant_OI = normal[:8, :64], torch.ones(8, 64)
    varying_OI = constant_OI.clone()
    varying_OI[3, 5] = 1.001
    for fmt, update_OI in (
        (Affine(4, 32), varying_OI),
        (Affine(4, 32), torch.zeros(8, 64)),
        (Affine(4, 32, double_quant=True), constant_OI),
    ):
        assert fmt.add_to_groups(fmt.encode(weight_OI), update_OI) is None
