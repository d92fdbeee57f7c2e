"""Fused layers equal PEFT's forward pass and gradients, for LoRA and AdaLoRA."""

from __future__ import annotations

import pytest
import torch
from bitrank_adapters import AdaLora, AdapterScale, adapted, attach_adalora, attach_lora, fuse, uniform_ranks


def attach(make, blocks, name: str, kind: str, dtype: torch.dtype):
    base = make(name, dtype)
    if kind == "lora":
        model = attach_lora(base, uniform_ranks(blocks[name], 4), scale=AdapterScale(1.7, "constant"))
    else:
        model = attach_adalora(
            base, blocks[name], AdaLora(6, 2), total_steps=50, scale=AdapterScale(1.7, "constant")
        )
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.eval()


def run(model, ids):
    logits = model(input_ids=ids).logits.float()
    logits.square().mean().backward()
    return logits.detach(), {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("kind", ["lora", "adalora"])
@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.05)])
def test_fused_model_equals_peft(make, blocks, ids, name: str, kind: str, dtype, tolerance: float) -> None:
    plain_logits, plain_grads = run(attach(make, blocks, name, kind, dtype), ids)
    model = attach(make, blocks, name, kind, dtype)
    fuse(model)
    logits, grads = run(model, ids)
    assert (logits - plain_logits).norm() / plain_logits.norm() < tolerance
    scale = max(float(grad.norm()) for grad in plain_grads.values())
    for key, grad in plain_grads.items():
        assert grads[key].dtype == torch.float32
        assert float((grads[key] - grad).norm()) < tolerance * scale, key


def test_disabled_adapter_gives_the_base_output(make, blocks, ids) -> None:
    model = attach(make, blocks, "bert", "lora", torch.float32)
    fuse(model)
    expected = make("bert").eval()(input_ids=ids).logits
    with model.disable_adapter():
        assert torch.allclose(model(input_ids=ids).logits, expected, atol=1e-5)
    assert not torch.allclose(model(input_ids=ids).logits, expected, atol=1e-5)


def test_fuse_changes_no_parameter(make, blocks) -> None:
    model = attach(make, blocks, "llama", "lora", torch.float32)
    before = {name: p.clone() for name, p in model.state_dict().items()}
    fuse(model)
    assert all(torch.equal(before[name], p) for name, p in model.state_dict().items())
    assert len(adapted(model)) == len(blocks["llama"])


class SwitchableDecoder:
    """Decoder whose ``applies`` can be switched off, and which counts its calls."""

    def __init__(self, layer: torch.nn.Linear) -> None:
        self.layer, self.enabled, self.decoded = layer, True, 0

    def applies(self) -> bool:
        return self.enabled

    def __call__(self) -> torch.Tensor:
        self.decoded += 1
        return self.layer.weight


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_base_computes_its_own_product_if_decoder_does_not_apply(make, blocks, ids, name: str) -> None:
    """Covers a single layer, layers with shared input, and a layer after an activation."""
    plain, model = (attach(make, blocks, name, "lora", torch.float32) for _ in range(2))
    decodes: list[SwitchableDecoder] = []

    def decoder(layer: torch.nn.Module) -> SwitchableDecoder | None:
        decodes.append(SwitchableDecoder(layer))
        return decodes[-1]

    fuse(model, decoder)
    expected, gradients = run(plain, ids)
    for enabled in (True, False):
        for decode in decodes:
            decode.enabled, decode.decoded = enabled, 0
        model.zero_grad()
        logits, found = run(model, ids)
        assert torch.allclose(logits, expected, atol=1e-5)
        scale = max(float(grad.norm()) for grad in gradients.values())
        assert all(float((found[key] - grad).norm()) < 1e-4 * scale for key, grad in gradients.items())
        assert bool(sum(decode.decoded for decode in decodes)) == enabled
