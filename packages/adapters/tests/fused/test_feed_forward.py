"""A fused feed-forward part saves only its activation's inputs and gives the same results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from bitrank_adapters import AdapterScale, attach_lora, fuse, uniform_ranks
from bitrank_adapters.fused import feed_forward
from bitrank_adapters.fused import fuse as fused_fuse
from peft import LoraConfig, PeftModel
from torch import Tensor
from transformers.activations import ACT2FN


def adapted_model(make: Callable[..., Any], blocks: dict[str, Any], name: str) -> Any:
    return filled(
        attach_lora(
            make(name, torch.float32), uniform_ranks(blocks[name], 4), scale=AdapterScale(1.7, "constant")
        )
    )


def filled(model: Any) -> Any:
    """Set the factors to nonzero values."""
    with torch.no_grad():
        for number, parameter in enumerate(p for p in model.parameters() if p.requires_grad):
            parameter.copy_(
                torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)) * 0.1
            )
    return model.eval()


def kept_bytes(model: Any, ids: Tensor) -> int:
    """Bytes of all storages that a forward pass saves for the backward pass."""
    storages: dict[int, Any] = {}

    def keep(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(input_ids=ids).logits.square().mean()
    loss.backward()
    return sum(storage.nbytes() for storage in storages.values())


@pytest.mark.parametrize(("name", "spared"), [("bert", 1), ("llama", 2)])
def test_wide_tensors_are_saved_once(
    make: Callable[..., Any],
    blocks: dict[str, Any],
    ids: Tensor,
    name: str,
    spared: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = adapted_model(make, blocks, name)
    fuse(model)
    kept = kept_bytes(model, ids)
    monkeypatch.setattr(fused_fuse, "fuse_feed_forward", lambda *_: None)
    unfused = adapted_model(make, blocks, name)
    fuse(unfused)
    config = model.config
    wide = 4 * ids.numel() * config.intermediate_size
    assert kept_bytes(unfused, ids) - kept == spared * config.num_hidden_layers * wide


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_disabled_adapter_gives_the_base_output(
    make: Callable[..., Any], blocks: dict[str, Any], ids: Tensor, name: str
) -> None:
    model = adapted_model(make, blocks, name)
    fuse(model)
    expected = make(name, torch.float32).eval()(input_ids=ids).logits
    with model.disable_adapter():
        assert torch.allclose(model(input_ids=ids).logits, expected, atol=1e-5)


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_merged_adapter_equals_unmerged_output(
    make: Callable[..., Any], blocks: dict[str, Any], ids: Tensor, name: str
) -> None:
    model = adapted_model(make, blocks, name)
    expected = model(input_ids=ids).logits
    fuse(model)
    model.merge_adapter()
    assert torch.allclose(model(input_ids=ids).logits, expected, atol=1e-4)


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_other_activations_are_not_fused(
    make: Callable[..., Any], blocks: dict[str, Any], ids: Tensor, name: str
) -> None:
    """tanh-GELU and ReLU have no fused form."""
    model, plain = (adapted_model(make, blocks, name) for _ in range(2))
    for one in (model, plain):
        for module in one.modules():
            if type(module).__name__ == "LlamaMLP":
                module.act_fn = torch.nn.ReLU()
            if type(module).__name__ == "BertIntermediate":
                module.intermediate_act_fn = ACT2FN["gelu_new"]
    fuse(model)
    assert not patched(model)
    assert torch.allclose(model(input_ids=ids).logits, plain(input_ids=ids).logits, atol=1e-5)


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_adapter_with_dropout_is_not_fused(
    make: Callable[..., Any], blocks: dict[str, Any], name: str
) -> None:
    dropped = PeftModel(
        make(name, torch.float32), LoraConfig(r=2, lora_dropout=0.5, target_modules=blocks[name])
    )
    fuse(dropped)
    assert not patched(dropped)
    model = adapted_model(make, blocks, name)
    fuse(model)
    assert len(patched(model)) == model.config.num_hidden_layers


def patched(model: Any) -> list[str]:
    """Names of the fused feed-forward parts."""
    parts = {
        name: vars(module)
        for name, module in model.named_modules()
        if type(module).__name__ in {"LlamaMLP", "BertLayer"}
    }
    return [name for name, own in parts.items() if {"forward", "feed_forward_chunk"} & own.keys()]


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_gradient_checkpointing_gives_the_same_gradients(
    make: Callable[..., Any], blocks: dict[str, Any], ids: Tensor, name: str
) -> None:
    """Gradient checkpointing permits a single unpack of each saved tensor."""
    grads = []
    for checkpointing in (False, True):
        model = adapted_model(make, blocks, name).train()
        fuse(model)
        if checkpointing:
            model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
        model(input_ids=ids).logits.square().mean().backward()
        grads.append([p.grad for p in model.parameters() if p.grad is not None])
    assert len(grads[0]) > 0
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*grads, strict=True))


def test_inputs_without_gradient_are_supported(make: Callable[..., Any]) -> None:
    """With an adapter on the last layer only, the activation's inputs get no gradient, the factors do."""
    plain, model = (
        filled(attach_lora(make("bert", torch.float32), {"bert.encoder.layer.0.output.dense": 2}))
        for _ in range(2)
    )
    fuse(model)
    layer = next(module for name, module in model.named_modules() if name.endswith("layer.0.output.dense"))
    assert feed_forward.decoded(layer, fused_fuse.plain_decoder) is not None
    grads = []
    for one in (plain.eval(), model.eval()):
        one(input_ids=torch.arange(4, 24).view(2, 10)).logits.square().mean().backward()
        grads.append([p.grad for p in one.parameters() if p.grad is not None])
    assert len(grads[0]) == len(grads[1]) > 0
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*grads, strict=True))
