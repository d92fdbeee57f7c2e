"""fp8 is torch's cast, and stand-ins have the second moment of a format's error."""

from __future__ import annotations

import pytest
import torch
from bitrank_quant import FORMATS, Noise, QuantError, imitated_format, parse_format
from bitrank_quant.formats.base import blocks

IMITATED = ["int2-g64", "int3-g64", "int4-g32", "int6-g64", "nf4-dq", "int8", "fp8", "sym4-g64"]


@pytest.fixture(scope="module")
def normal() -> torch.Tensor:
    return torch.randn(96, 192, generator=torch.Generator().manual_seed(0))


def test_fp8_is_the_cast_of_torch_with_a_scale_per_row(normal: torch.Tensor) -> None:
    weight_OI = normal * torch.logspace(-3, 3, 96)[:, None]
    fmt = parse_format("fp8")
    scale_O = weight_OI.abs().amax(dim=1) / 448
    expected_OI = (weight_OI / scale_O[:, None]).to(torch.float8_e4m3fn)
    encoded = fmt.encode(weight_OI)
    assert torch.equal(encoded["codes"], expected_OI.view(torch.uint8))
    decoded_OI = fmt.decode(encoded, (96, 192), torch.float32)
    assert torch.equal(decoded_OI, expected_OI.float() * scale_O[:, None])
    assert (fmt.bits, fmt.nbytes((96, 192))) == (8, 96 * 192 + 4 * 96)


def test_fp8_error_is_at_most_half_a_mantissa_step(normal: torch.Tensor) -> None:
    fmt = parse_format("fp8")
    error_OI = fmt.decode(fmt.encode(normal), (96, 192), torch.float32) - normal
    smallest_O = normal.abs().amax(dim=1) / 448 * 2**-10  # half of the smallest subnormal number
    assert bool((error_OI.abs() <= normal.abs() * 2**-4 * (1 + 1e-6) + smallest_O[:, None]).all())


@pytest.mark.parametrize("text", IMITATED)
@pytest.mark.parametrize("columns", [192, 100])
def test_noise_has_the_second_moment_of_the_error_in_every_group(
    text: str, columns: int, normal: torch.Tensor
) -> None:
    weight_OI, fmt = normal[:, :columns], parse_format(text)
    stand_in = parse_format(f"noise16-{text}")
    assert isinstance(stand_in, Noise) and imitated_format(stand_in) == fmt
    error_OI = fmt.decode(fmt.encode(weight_OI), (96, columns), torch.float32) - weight_OI
    noise_OI = stand_in.noise(weight_OI)
    width = fmt.block or columns
    padded = -columns % width
    for start in range(0, columns, width):
        here = slice(start, start + width)
        moments_O = [values_OI[:, here].square().sum(dim=1) for values_OI in (error_OI, noise_OI)]
        assert torch.allclose(*moments_O, rtol=1e-4)
    assert padded or blocks(noise_OI, width).numel() == noise_OI.numel()
    assert abs(float(torch.corrcoef(torch.stack([error_OI.flatten(), noise_OI.flatten()]))[0, 1])) < 0.04
    stored_OI = stand_in.decode(stand_in.encode(weight_OI), (96, columns), torch.float32)
    assert torch.equal(stored_OI, (weight_OI + noise_OI).bfloat16().float())


def test_noise_follows_from_the_weights_alone(normal: torch.Tensor) -> None:
    fmt = Noise(parse_format("int4-g64"))
    state = torch.get_rng_state()
    assert torch.equal(fmt.noise(normal), fmt.noise(normal.clone()))
    assert torch.equal(torch.get_rng_state(), state)
    other = normal.clone()
    other[0, 0] += 1
    first, second = fmt.noise(normal)[1:], fmt.noise(other)[1:]
    assert float((first * second).mean() / first.square().mean()) < 0.1


def test_a_stand_in_counts_16_bits_and_is_offered_nowhere(normal: torch.Tensor) -> None:
    fmt = parse_format("noise16-int3-g64")
    encoded = fmt.encode(normal)
    assert sum(tensor.nbytes for tensor in encoded.values()) == fmt.nbytes((96, 192)) == 2 * 96 * 192
    assert fmt.bits == 16 and str(fmt) == "noise16-int3-g64"
    assert not any(imitated_format(one) for one in FORMATS.values())
    some = torch.tensor([3, 90, 3])
    rows = fmt.decode(fmt.rows(encoded, some, 96), (3, 192), torch.float32)
    assert torch.equal(rows, fmt.decode(encoded, (96, 192), torch.float32)[some])
    assert not fmt.noise(torch.zeros(2, 64)).any()


def test_stand_ins_imitate_low_bit_formats_only() -> None:
    for text in ("noise16-bf16", "noise16-fp32", "noise16-noise16-int4-g64"):
        with pytest.raises(QuantError, match="imitates the rounding of a low-bit format, got"):
            parse_format(text)
    with pytest.raises(QuantError, match="unknown format 'int9-g64'"):
        parse_format("noise16-int9-g64")
