"""Trained scales: closed-form gradients, unchanged codes and bytes, refusals."""

from __future__ import annotations

import pytest
import torch
from bitrank_quant import (
    QuantError,
    QuantLinear,
    QuantWeight,
    apply_precision,
    block_matrices,
    parse_format,
    scale_numbers,
    set_scales,
    stored_bytes,
    train_scales,
    why_no_scales,
)
from bitrank_quant.backends import reference

TRAINABLE = ["int4-g64", "int3-g32", "int2-g64", "int8-g64", "sym4-g64", "int8"]
REFUSED = ["int4-g64-dq", "nf4", "nf4-dq", "nf3", "fp4", "llm-int8", "bf16", "fp32"]


def values_of(text: str, tensors: dict[str, torch.Tensor], shape: tuple[int, int]) -> torch.Tensor:
    """Weights as a differentiable function of scales and minima, by the definition of each format."""
    fmt = parse_format(text)
    ones = {key: torch.ones_like(value) for key, value in tensors.items() if key == "scale"}
    none = {key: torch.zeros_like(value) for key, value in tensors.items() if key == "minimum"}
    plain = {key: tensors[key].detach() for key in tensors if key == "codes"}
    codes_OI = fmt.decode({**plain, **ones, **none}, shape, torch.float32)
    width = fmt.block or shape[1]

    def spread(name: str) -> torch.Tensor:
        return tensors[name].view(shape[0], -1).repeat_interleave(width, dim=1)[:, : shape[1]]

    weight_OI = codes_OI * spread("scale")
    return weight_OI + spread("minimum") if "minimum" in tensors else weight_OI


@pytest.mark.parametrize("in_parts", [False, True])
@pytest.mark.parametrize("text", TRAINABLE)
@pytest.mark.parametrize("shape", [(128, 64), (9, 128), (16, 100)])
def test_gradients_of_scales_and_minima_are_sums_over_groups(
    text: str, shape: tuple[int, int], in_parts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if in_parts:
        monkeypatch.setattr(reference, "_PRODUCT", 8 * shape[1])
    generator = torch.Generator().manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(shape[1], shape[0]))
    weight = QuantWeight(torch.randn(shape, generator=generator), parse_format(text), torch.float32)
    model[0] = QuantLinear(weight, torch.randn(shape[0], generator=generator))
    x_NI = torch.randn(5, shape[1], generator=generator, requires_grad=True)
    upstream_NO = torch.randn(5, shape[0], generator=generator)
    expected = {
        name: tensor.float().requires_grad_(name != "codes")
        for name, tensor in weight.tensors.items()
        if name != "codes"
    }
    weight_OI = values_of(text, {"codes": weight.tensors["codes"], **expected}, shape)
    before_NO = model(x_NI)
    (before_NO * upstream_NO).sum().backward()
    input_gradient_NI, x_NI.grad = x_NI.grad, None
    (x_NI.detach() @ weight_OI.T * upstream_NO).sum().backward()

    train_scales(model, ["0"])
    after_NO = model(x_NI)
    assert torch.equal(after_NO, before_NO)
    (after_NO * upstream_NO).sum().backward()
    assert torch.equal(x_NI.grad, input_gradient_NI)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad and "bias" not in name}
    assert {name.rpartition(".")[2] for name in trained} == expected.keys()
    for name, parameter in trained.items():
        closed_form = expected[name.rpartition(".")[2]].grad
        assert torch.allclose(parameter.grad, closed_form, rtol=1e-4, atol=1e-4)
        assert parameter.dtype == torch.float32
    assert sum(p.numel() for p in trained.values()) == scale_numbers(weight.fmt, shape)


def quantized(make, text: str):
    model = make("llama")
    names = [m.name for m in block_matrices(model)]
    apply_precision(model, dict.fromkeys(names, text), compute_dtype=torch.float32)
    return model, names


def test_written_scales_take_the_place_of_stored_ones_for_no_bytes(make, ids) -> None:
    model, names = quantized(make, "int4-g64")
    plain, _ = quantized(make, "int4-g64")
    chosen = names[:3]
    dtypes = train_scales(model, chosen)
    assert set(dtypes.values()) == {torch.bfloat16}
    assert torch.equal(model(input_ids=ids).logits, plain(input_ids=ids).logits)
    parameters = dict(model.named_parameters())
    trained = {}
    with torch.no_grad():
        for number, (name, dtype) in enumerate(dtypes.items()):
            parameters[name].mul_(1 + 0.1 * number).copy_(parameters[name].to(dtype))
            trained[name.replace(".quantized.group_scales", "")] = parameters[name].to(dtype)
    size = stored_bytes(plain).total
    kept = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    set_scales(plain, trained)
    assert torch.equal(model(input_ids=ids).logits, plain(input_ids=ids).logits)
    assert stored_bytes(plain).total == size
    changed = {name for name, tensor in plain.state_dict().items() if not torch.equal(tensor, kept[name])}
    assert changed <= {f"{name}.quantized.{part}" for name in chosen for part in ("scale", "minimum")}


@pytest.mark.parametrize("text", REFUSED)
def test_formats_without_trainable_scales_have_a_reason(text: str) -> None:
    fmt = parse_format(text)
    assert why_no_scales(fmt)
    assert scale_numbers(fmt, (64, 64)) == 0


@pytest.mark.parametrize("text", ["nf4-dq", "int4-g64-dq", "fp4"])
def test_a_layer_without_trainable_scales_is_refused_before_the_model_changes(make, text: str) -> None:
    model, names = quantized(make, "int4-g64")
    other = QuantWeight(torch.randn(64, 64), parse_format(text), torch.float32)
    layer = QuantLinear(other, None)
    model.set_submodule(names[-1], layer)
    with pytest.raises(QuantError, match=f"{names[-1]}: the scales of {text} cannot be trained: .*; give"):
        train_scales(model, names)
    assert model.get_submodule(names[-1]) is layer
    assert not any("group_scales" in name for name, _ in model.named_parameters())


def test_matrices_in_16_bits_stay_frozen_and_a_model_of_them_is_refused(make) -> None:
    model, names = quantized(make, "int4-g64")
    model.set_submodule(names[0], torch.nn.Linear(64, 64).requires_grad_(False))
    dtypes = train_scales(model, names)
    assert not any(name.startswith(f"{names[0]}.") for name in dtypes)
    with pytest.raises(QuantError, match="no matrix has scales to train; give"):
        train_scales(make("llama"), names)


def test_scales_of_another_model_are_refused(make) -> None:
    model, names = quantized(make, "int4-g64")
    for key, values in (
        (f"{names[0]}.scale", torch.ones(3)),
        ("model.layers.9.mlp.up_proj.scale", torch.ones(64)),
        (f"{names[0]}.codes", torch.ones(64)),
    ):
        with pytest.raises(QuantError, match=f"contain {key} of shape .* which this model does not store"):
            set_scales(model, {key: values})
