"""Layers that share their input compute together, and change no number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from bitrank_adapters import AdaLora, attach_adalora, attach_lora, fuse
from bitrank_adapters.fused import fuse as fused_fuse
from peft import LoraConfig, PeftModel
from torch import Tensor

PARTS = {
    "bert": ("bert.encoder.layer.{}.", ("attention.self.query", "attention.self.key", "attention.self.value", "output.dense")),
    "llama": ("model.layers.{}.", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj",
                                   "mlp.down_proj")),
}  # fmt: skip
GROUPS = {"bert": 1, "llama": 2}  # of layers that share an input, in a block


def matrices(name: str, without: str = "none") -> list[str]:
    block, parts = PARTS[name]
    return [block.format(number) + part for number in range(2) for part in parts if without not in part]


def attach(
    make: Callable[..., Any],
    name: str,
    kind: str = "lora",
    dtype: torch.dtype = torch.float32,
    without: str = "none",
) -> Any:
    """With a rank of its own for every matrix, and factors that are not zero."""
    names = matrices(name, without)
    if kind == "lora":
        model = attach_lora(
            make(name, dtype), {matrix: 2 + number % 3 for number, matrix in enumerate(names)}, scale=1.7
        )
    else:
        model = attach_adalora(make(name, dtype), names, AdaLora(6, 2), total_steps=50, scale=1.7)
    with torch.no_grad():
        for number, parameter in enumerate(p for p in model.parameters() if p.requires_grad):
            parameter.copy_(
                torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)) * 0.1
            )
    return model.eval()


def run(model: Any, ids: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    logits = model(input_ids=ids).logits.float()
    logits.square().mean().backward()
    return logits.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.fixture
def together(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many layers each group had that computed together."""
    from bitrank_adapters.fused import shared_input

    found: list[int] = []
    products = shared_input._products

    def noted(layers: Any, *words: Any) -> Any:
        found.append(len(layers))
        return products(layers, *words)

    monkeypatch.setattr(shared_input, "_products", noted)
    return found


@pytest.mark.parametrize("kind", ["lora", "adalora"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
@pytest.mark.parametrize("name", PARTS)
def test_together_is_apart(
    make: Callable[..., Any],
    ids: Tensor,
    name: str,
    dtype: torch.dtype,
    tolerance: float,
    kind: str,
    together: list[int],
) -> None:
    plain_logits, plain_grads = run(attach(make, name, kind, dtype), ids)
    model = attach(make, name, kind, dtype)
    fuse(model)
    logits, grads = run(model, ids)
    assert together == {"bert": [3, 3], "llama": [3, 2, 3, 2]}[name]
    assert (logits - plain_logits).norm() / plain_logits.norm() < tolerance
    assert grads.keys() == plain_grads.keys()
    scale = max(float(grad.norm()) for grad in plain_grads.values())
    for key, grad in plain_grads.items():
        assert grads[key].dtype == torch.float32
        assert float((grads[key] - grad).norm()) < tolerance * scale, key


@pytest.mark.parametrize("name", PARTS)
def test_the_graph_has_one_node_for_a_group(
    make: Callable[..., Any], ids: Tensor, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nodes(model: Any) -> list[str]:
        seen, open_ = set(), [model(input_ids=ids).logits.grad_fn]
        while open_:
            node = open_.pop()
            if node is not None and node not in seen:
                seen.add(node)
                open_ += [following for following, _ in node.next_functions]
        return [node.name() for node in seen]

    model = attach(make, name)
    fuse(model)
    assert nodes(model).count("SharedBackward") == 2 * GROUPS[name]
    monkeypatch.setattr(fused_fuse, "share_inputs", lambda *_: None)
    apart = attach(make, name)
    fuse(apart)
    layers = {"bert": 3, "llama": 5}[name]
    assert nodes(apart).count("AdaptedBackward") - nodes(model).count("AdaptedBackward") == 2 * layers


@pytest.mark.parametrize(("name", "without"), [("bert", "key"), ("llama", "v_proj")])
def test_a_group_that_lacks_an_adapter_computes_apart(
    make: Callable[..., Any], ids: Tensor, name: str, without: str, together: list[int]
) -> None:
    expected, _ = run(attach(make, name, without=without), ids)
    model = attach(make, name, without=without)
    fuse(model)
    assert torch.allclose(run(model, ids)[0], expected, atol=1e-5)
    assert 3 not in together


def test_adapters_with_dropout_keep_their_way(
    make: Callable[..., Any], ids: Tensor, together: list[int]
) -> None:
    model = PeftModel(make("llama"), LoraConfig(r=2, lora_dropout=0.5, target_modules=matrices("llama")))
    fuse(model)
    run(model, ids)
    assert not together


@pytest.mark.parametrize("name", PARTS)
def test_a_disabled_and_a_merged_adapter_are_what_they_are(
    make: Callable[..., Any], ids: Tensor, name: str, together: list[int]
) -> None:
    model = attach(make, name)
    adapted = model(input_ids=ids).logits
    fuse(model)
    with model.disable_adapter():
        assert torch.allclose(model(input_ids=ids).logits, make(name).eval()(input_ids=ids).logits, atol=1e-5)
    model.merge_adapter()
    assert torch.allclose(model(input_ids=ids).logits, adapted, atol=1e-4)
    assert not together


def test_a_layer_asked_for_something_else_computes_that(make: Callable[..., Any], ids: Tensor) -> None:
    """Its parent's forward gives it another input than it was given itself; and outside of its parent it is a layer like any other."""
    model, plain = attach(make, "bert"), attach(make, "bert")
    fuse(model)
    for one in (model, plain):
        part = one.get_base_model().bert.encoder.layer[0].attention.self
        query = part.query.forward
        part.query.forward = lambda x, query=query: query(2 * x)
    assert torch.allclose(model(input_ids=ids).logits, plain(input_ids=ids).logits, atol=1e-5)
    x = torch.randn(2, 3, 32)
    key, same = (one.get_base_model().bert.encoder.layer[0].attention.self.key for one in (model, plain))
    assert torch.allclose(key(x), same(x), atol=1e-5)


@pytest.mark.parametrize("name", PARTS)
def test_gradients_are_the_same_when_blocks_are_computed_again(
    make: Callable[..., Any], ids: Tensor, name: str, together: list[int]
) -> None:
    grads = []
    for again in (False, True):
        model = attach(make, name).train()
        fuse(model)
        if again:
            model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
        grads.append(run(model, ids)[1])
    assert len(together) == 3 * 2 * GROUPS[name]
    assert grads[0].keys() == grads[1].keys()
    assert all(torch.allclose(grads[0][key], grads[1][key], atol=1e-6) for key in grads[0])


def test_extra_arguments_reach_the_layer(make: Callable[..., Any], ids: Tensor) -> None:
    """PEFT names an adapter for each row by them: here none for the first."""
    model, plain = attach(make, "bert"), attach(make, "bert")
    fuse(model)
    x = torch.randn(2, 3, 32)
    adapters = ["__base__", "default"]
    for one in (model, plain):
        part = one.get_base_model().bert.encoder.layer[0].attention.self
        key = part.key.forward
        part.key.forward = lambda x, key=key: key(x, adapter_names=adapters)
    got, expected = (
        one.get_base_model().bert.encoder.layer[0].attention.self(x)[0] for one in (model, plain)
    )
    assert torch.allclose(got, expected, atol=1e-5)
    assert not torch.allclose(
        got, attach(make, "bert").get_base_model().bert.encoder.layer[0].attention.self(x)[0], atol=1e-3
    )


def test_a_layer_that_lost_its_adapter_after_fusing_is_left_alone(
    make: Callable[..., Any], ids: Tensor, together: list[int]
) -> None:
    """As when AdaLoRA has pruned all ranks of a matrix: the group computes apart."""
    model, plain = attach(make, "bert"), attach(make, "bert")
    fuse(model)
    for one in (model, plain):
        for block in one.get_base_model().bert.encoder.layer:
            block.attention.self.key = block.attention.self.key.base_layer
    assert torch.allclose(model(input_ids=ids).logits, plain(input_ids=ids).logits, atol=1e-5)
    assert not together
