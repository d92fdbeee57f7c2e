"""Layers over codes that a quantizer chose: every backend multiplies by the matrix that the codes stand
for."""

from __future__ import annotations

import pytest
import torch
from bitrank_quant import (
    BACKENDS,
    FORMATS,
    Encoding,
    InputMoments,
    QuantError,
    apply_precision,
    block_matrices,
    decoder,
    parse_format,
    quantize,
    stored_bytes,
    stored_weight,
    weight_matrices,
)
from torch import Tensor, nn

TAKING = [
    (backend.name, text)
    for backend in BACKENDS.values()
    for text, fmt in FORMATS.items()
    if backend.make_from_codes is not None and backend.serves(fmt) and fmt.bits < 16
]


@pytest.mark.parametrize(("backend", "text"), TAKING)
def test_output_gradient_and_bytes_are_those_of_the_codes(backend: str, text: str) -> None:
    generator = torch.Generator().manual_seed(0)
    weight_OI, bias_O = torch.randn(96, 128, generator=generator), torch.randn(96, generator=generator)
    fmt, entry = parse_format(text), BACKENDS[backend]
    moments = InputMoments(torch.rand(128, generator=generator) + 0.1)
    codes = quantize(weight_OI, fmt, "search", moments)
    decoded_OI = fmt.decode(codes, (96, 128), torch.float32)
    assert entry.make_from_codes is not None
    layer = entry.make_from_codes(codes, fmt, (96, 128), bias_O, torch.float32).train()
    torch.testing.assert_close(stored_weight(layer), decoded_OI, rtol=1e-5, atol=1e-6)
    x = torch.randn(7, 128, generator=generator).requires_grad_()
    y, expected = layer(x), x @ decoded_OI.T + bias_O
    tolerance = 0.02 if text == "llm-int8" else 1e-4  # activations may be rounded as well
    assert (y - expected).norm() < tolerance * expected.norm()
    (gradient,) = torch.autograd.grad(y.square().sum(), x)
    (expected_gradient,) = torch.autograd.grad(expected.square().sum(), x)
    assert (gradient - expected_gradient).norm() < tolerance * expected_gradient.norm()
    assert stored_bytes(layer).total - bias_O.nbytes == entry.nbytes(fmt, (96, 128), torch.float32)


@pytest.mark.parametrize(("backend", "text"), TAKING)
def test_every_layer_of_a_model_stores_the_predicted_bytes(backend: str, text: str) -> None:
    """A storage counts once, so layers that shared their code books would take less than a plan says."""
    fmt, entry = parse_format(text), BACKENDS[backend]
    weights = torch.randn(3, 96, 128, generator=torch.Generator().manual_seed(0))
    assert entry.make_from_codes is not None
    layers = [
        entry.make_from_codes(fmt.encode(weight_OI), fmt, (96, 128), None, torch.float32)
        for weight_OI in weights
    ]
    assert stored_bytes(nn.Sequential(*layers)).total == 3 * entry.nbytes(fmt, (96, 128), torch.float32)


@pytest.mark.parametrize("quantizer", ["rtn", "search"])
@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_a_plan_applied_with_a_quantizer_stores_its_codes(make, name: str, quantizer: str) -> None:
    model, oracle = make(name), make(name)
    formats = {"attention": "int3-g64", "ffn": "nf4-dq", "embedding": "int8"}
    plan = {m.name: formats[m.role] for m in weight_matrices(model) if m.role in formats}

    def encode(_name: str, weight_OI: Tensor, fmt) -> dict[str, Tensor]:
        return quantize(weight_OI, fmt, quantizer)

    apply_precision(model, plan, compute_dtype=torch.float32, encoding=Encoding(encode=encode))
    for matrix in weight_matrices(oracle):
        if matrix.name in plan:
            module = oracle.get_submodule(matrix.name)
            weight_OI = module.weight.T if type(module).__name__ == "Conv1D" else module.weight
            fmt = parse_format(plan[matrix.name])
            expected_OI = fmt.decode(quantize(weight_OI, fmt, quantizer), matrix.shape, torch.float32)
            stored_OI = stored_weight(model.get_submodule(matrix.name))
            torch.testing.assert_close(stored_OI, expected_OI, rtol=1e-5, atol=1e-6)


def test_the_split_of_a_residual_start_sees_the_codes_of_the_quantizer(make) -> None:
    model = make("llama")
    name = block_matrices(model)[0].name
    seen = {}

    def split(matrix: str, weight_OI: Tensor, stored) -> Tensor:
        seen[matrix] = weight_OI, stored(weight_OI)
        return weight_OI

    def encode(_name: str, weight_OI: Tensor, fmt) -> dict[str, Tensor]:
        return quantize(weight_OI, fmt, "search")

    apply_precision(model, {name: "int3-g64"}, compute_dtype=torch.float32, encoding=Encoding(split, encode))
    weight_OI, stored_OI = seen[name]
    fmt = parse_format("int3-g64")
    shape = (weight_OI.shape[0], weight_OI.shape[1])
    assert torch.equal(stored_OI, fmt.decode(quantize(weight_OI, fmt, "search"), shape, torch.float32))


def test_a_library_that_encodes_weights_itself_is_refused_before_the_model_changes(make) -> None:
    model = make("llama", torch.bfloat16)
    plan = {m.name: "int4-g64" for m in block_matrices(model)}
    before = dict(model.named_modules())

    def encode(_name: str, weight_OI: Tensor, fmt) -> dict[str, Tensor]:
        return quantize(weight_OI, fmt, "search")

    with pytest.raises(
        QuantError, match=r"quanto encodes weights itself, by rounding; give the quantizer rtn"
    ):
        apply_precision(model, plan, quant_backend="quanto-int4", encoding=Encoding(encode=encode))
    assert dict(model.named_modules()) == before


def test_bitsandbytes_refuses_codes_of_rows_that_end_within_a_block() -> None:
    fmt = parse_format("nf4")
    misfit = BACKENDS["bitsandbytes"].codes_misfit
    assert misfit(fmt, (8, 128)) is None
    assert "whole blocks of 64" in str(misfit(fmt, (8, 100)))


def test_a_decoder_reads_given_codes() -> None:
    fmt, weight_OI = parse_format("nf4-dq"), torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
    codes = quantize(weight_OI, fmt, "search")
    for backend in ("torch", "bitsandbytes"):
        make_from_codes = BACKENDS[backend].make_from_codes
        assert make_from_codes is not None
        decode = decoder(make_from_codes(codes, fmt, (64, 128), None, torch.float32))
        assert decode is not None
        torch.testing.assert_close(
            decode(), fmt.decode(codes, (64, 128), torch.float32), rtol=1e-5, atol=1e-6
        )
