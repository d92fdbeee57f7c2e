"""L4Q: gradients of learned steps, rounding as in the stored form, and no adapter at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from bitrank_adapters import (
    AdapterError,
    AdapterScale,
    LearnedSteps,
    StepStart,
    adapted,
    attach_learned_steps,
    attach_lora,
    fuse,
    read_adapter,
    uniform_ranks,
)
from bitrank_adapters.learned_steps import Quantize, full_range
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

GROUP, BITS, TOP = 8, 3, 7


def attach(make, blocks, name: str = "llama", group: int = GROUP, heads: tuple[str, ...] = ()):
    scale = AdapterScale(3.0, "constant")
    return attach_learned_steps(
        make(name), uniform_ranks(blocks[name], 4), BITS, group, scale=scale, heads=heads
    )


def change(model) -> None:
    """Give adapters, steps and minima other values than at the start."""
    with torch.no_grad():
        for number, (_, layer) in enumerate(adapted(model)):
            layer.weight()  # starts the layer
            source = torch.Generator().manual_seed(number)
            parts = (
                layer.lora_B["default"].weight,
                layer.lora_step["default"],
                layer.lora_minimum["default"],
            )
            for part in parts:
                part.copy_(torch.randn(part.shape, generator=source) * 0.05)


def plain(layer: nn.Module, codes: Any) -> nn.Module:
    """A linear layer with the matrix of ``codes``."""
    inputs, outputs = (layer.nx, layer.nf) if isinstance(layer, Conv1D) else layer.weight.shape[::-1]
    made = nn.Linear(inputs, outputs, bias=layer.bias is not None)
    values_GB = codes.codes_GB.float() * codes.step_G.float()[:, None] + codes.minimum_G.float()[:, None]
    weight_OI = values_GB.view(outputs, -1)[:, :inputs]
    made.weight = nn.Parameter(weight_OI, requires_grad=False)
    made.bias = layer.bias
    return made


def test_gradients_are_those_of_learned_step_sizes() -> None:
    """The closed form, one weight per group, at v = (w − m)/Δ below, inside of and above the grid 0 to 7."""
    step, minimum = 0.5, -1.0
    ratios = [-0.8, 0.0, 2.3, 2.7, 7.0, 9.4]
    weight = torch.tensor([[[minimum + ratio * step] for ratio in ratios]], requires_grad=True)
    steps = torch.full((1, 6), step, requires_grad=True)
    minima = torch.full((1, 6), minimum, requires_grad=True)
    values = Quantize.apply(weight, steps, minima, TOP)
    assert values.flatten().tolist() == pytest.approx([-1.0, -1.0, 0.0, 0.5, 2.5, 2.5])
    values.backward(torch.full_like(values, 2.0))
    assert weight.grad.flatten().tolist() == [0.0, 2.0, 2.0, 2.0, 2.0, 0.0]
    assert steps.grad[0].tolist() == pytest.approx([0.0, 0.0, -0.6, 0.6, 0.0, 14.0], abs=1e-5)
    assert minima.grad[0].tolist() == [2.0, 0.0, 0.0, 0.0, 0.0, 2.0]


def test_gradients_of_outputs_equal_those_of_the_formula_by_autograd(make, blocks) -> None:
    """The whole layer against round(v) − v as a constant, which autograd differentiates on its own."""
    model = attach(make, blocks)
    change(model)
    _, layer = adapted(model)[0]
    x_NI = torch.randn(5, layer.in_features, generator=torch.Generator().manual_seed(0))
    trained = [p for p in layer.parameters() if p.requires_grad]
    found = torch.autograd.grad(layer(x_NI).square().sum(), trained)
    step_OG, minimum_OG = layer.grid()
    ratio_OGB = (layer.groups() - minimum_OG[..., None]) / step_OG[..., None]
    clamped_OGB = ratio_OGB.clamp(0, TOP)
    codes_OGB = clamped_OGB + (clamped_OGB.round() - clamped_OGB).detach()
    weight_OI = (codes_OGB * step_OG[..., None] + minimum_OG[..., None]).flatten(1)
    expected = torch.autograd.grad(nn.functional.linear(x_NI, weight_OI).square().sum(), trained)
    for mine, other in zip(found, expected, strict=True):
        assert torch.allclose(mine, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
@pytest.mark.parametrize("group", [8, 12])
def test_a_new_adapter_gives_the_matrix_rounded_on_its_full_range(
    make, blocks, name: str, group: int
) -> None:
    for _, layer in adapted(attach(make, blocks, name, group)):
        weight_OI = layer.base_weight()
        found_OI = layer.weight()
        for start in range(0, layer.in_features, group):
            part_OB = weight_OI[:, start : start + group]
            low_O, high_O = part_OB.amin(1).bfloat16().float(), part_OB.amax(1)
            step_O = ((high_O - low_O) / TOP).bfloat16().float()
            codes_OB = ((part_OB - low_O[:, None]) / step_O[:, None]).round().clamp(0, TOP)
            expected_OB = codes_OB * step_O[:, None] + low_O[:, None]
            assert torch.allclose(found_OI[:, start : start + group], expected_OB, atol=1e-6)


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_the_finished_model_computes_the_same_without_an_adapter(make, blocks, ids, name: str) -> None:
    model = attach(make, blocks, name)
    change(model)
    hook = LearnedSteps(model, plain, lambda layers, folder: None)
    assert set(hook.ranks().values()) == {4}
    expected = model(input_ids=ids).logits
    hook.finish()
    assert adapted(model) == [] and hook.ranks() == dict.fromkeys(blocks[name], 0)
    assert torch.allclose(model(input_ids=ids).logits, expected, atol=1e-5)
    assert hook.stored_bytes() == 0


def test_validation_computes_with_the_numbers_that_are_stored(make, blocks, ids) -> None:
    """Rounding A and B to bf16 would change codes, and they are not stored."""
    model = attach(make, blocks)
    change(model)
    hook = LearnedSteps(model, plain, lambda layers, folder: None)
    expected = model(input_ids=ids).logits
    with hook.as_stored():
        assert torch.equal(model(input_ids=ids).logits, expected)


def test_the_file_has_heads_alone_and_the_layers_are_written_beside_it(make, blocks, tmp_path) -> None:
    model = attach(make, blocks, "bert", heads=("classifier",))
    written: dict[str, nn.Module] = {}
    hook = LearnedSteps(model, plain, lambda layers, folder: written.update(layers))
    with pytest.raises(AdapterError, match="call finish first"):
        hook.save(tmp_path)
    hook.finish()
    hook.save(tmp_path)
    saved = read_adapter(tmp_path)
    assert saved.parts == {} and set(saved.whole) == {"classifier.weight", "classifier.bias"}
    assert hook.stored_bytes() == 2 * sum(tensor.numel() for tensor in saved.whole.values())
    assert set(written) == set(blocks["bert"])
    hook.save(Path(tmp_path))  # a second time, as after a repeated test


def test_the_start_is_the_unquantized_weight_or_the_chosen_code(make, blocks) -> None:
    """Where a quantizer took another code than the nearest, the start is the stored value."""
    model = attach(make, blocks)
    name, layer = adapted(model)[0]
    whole_OI = layer.base_layer.weight.detach().clone()

    def grid(_: str, weight_OI: Tensor) -> tuple[Tensor, Tensor]:
        return full_range(weight_OI, GROUP, TOP)

    start = StepStart({name: 4}, grid)
    assert start.split(name, whole_OI, lambda weight_OI: weight_OI) is whole_OI
    step_OG, minimum_OG = grid(name, whole_OI)
    ratio_OGB = (whole_OI.unflatten(1, (-1, GROUP)) - minimum_OG[..., None]) / step_OG[..., None]
    codes_OGB = ratio_OGB.round().clamp(0, TOP)
    codes_OGB[:, 0, 3] = (codes_OGB[:, 0, 3] + 2) % TOP
    stored_OI = (codes_OGB * step_OG[..., None] + minimum_OG[..., None]).flatten(1)
    layer.base_layer.weight.data = stored_OI
    with pytest.raises(AdapterError, match="stored before its weight could be kept"):
        start.write(model)  # the other matrices have no rank in this start
    assert torch.allclose(layer.weight(), stored_OI, atol=1e-6)
    changed_OI = layer.frozen_OI != whole_OI
    assert changed_OI[:, 3].all() and changed_OI.sum() == len(changed_OI)


def test_fused_layers_leave_the_adapters_alone_and_name_them(make, blocks, ids) -> None:
    model, fused = attach(make, blocks), attach(make, blocks)
    change(model)
    change(fused)
    assert sorted(fuse(fused)) == sorted(blocks["llama"])
    assert torch.allclose(fused(input_ids=ids).logits, model(input_ids=ids).logits, atol=1e-5)


def train(model, ids, steps: int) -> float:
    """Train by next tokens; return the last loss before the last step."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(steps):
        loss = loss_of(model, ids)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return float(loss_of(model, ids).detach())


def loss_of(model, ids) -> Tensor:
    logits_BTV = model(input_ids=ids).logits[:, :-1].float()
    return nn.functional.cross_entropy(logits_BTV.flatten(0, 1), ids[:, 1:].flatten())


def larger(make) -> nn.Module:
    """A random model with five times larger matrices, whose logits differ enough to learn."""
    model = make("llama")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5 if parameter.ndim == 2 else 1)
    return model


def test_loss_falls_below_that_of_quantizing_after_training(make, blocks, ids) -> None:
    """LoRA on the unquantized model and then rounding, against training inside of the rounding; two bits."""
    ranks = uniform_ranks(blocks["llama"], 4)
    inside = attach_learned_steps(larger(make), ranks, 2, GROUP)
    first = float(loss_of(inside, ids).detach())
    trained = train(inside, ids, 60)
    after = attach_lora(larger(make), ranks)
    train(after, ids, 60)
    with torch.no_grad():
        for _, layer in adapted(after):
            layer.merge()
            groups_OGB = layer.base_layer.weight.unflatten(1, (-1, GROUP))
            values_OGB = Quantize.apply(groups_OGB, *full_range(layer.base_layer.weight, GROUP, 3), 3)
            layer.base_layer.weight.copy_(values_OGB.flatten(1))
    rounded = float(loss_of(after, ids).detach())
    assert trained < rounded - 0.3 and trained < first - 2
