"""Layers with shared input compute together and give the same results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from bitrank_adapters import AdaLora, AdapterScale, attach_adalora, attach_lora, fuse
from bitrank_adapters.fused import fuse as fused_fuse
from peft import LoraConfig, PeftModel
from torch import Tensor

PARTS = {
    "bert": (
        "bert.encoder.layer.{}.",
        ("attention.self.query", "attention.self.key", "attention.self.value", "output.dense"),
    ),
    "llama": (
        "model.layers.{}.",
        (
            "self_attn.q_proj",
            "self_attn.k_proj",
            "self_attn.v_proj",
            "mlp.gate_proj",
            "mlp.up_proj",
            "mlp.down_proj",
        ),
    ),
}
GROUPS = {"bert": 1, "llama": 2}  # groups of layers with shared input per block


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
    """Adapters with a different rank per matrix and nonzero factors."""
    names = matrices(name, without)
    if kind == "lora":
        model = attach_lora(
            make(name, dtype),
            {matrix: 2 + number % 3 for number, matrix in enumerate(names)},
            scale=AdapterScale(1.7),
        )
    else:
        model = attach_adalora(
            make(name, dtype), names, AdaLora(6, 2), total_steps=50, scale=AdapterScale(1.7, "constant")
        )
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
    """Number of layers of each group that computed together."""
    from bitrank_adapters.fused import shared_input

    found: list[int] = []
    products = shared_input._products

    def recorded(layers: Any, *args: Any) -> Any:
        found.append(len(layers))
        return products(layers, *args)

    monkeypatch.setattr(shared_input, "_products", recorded)
    return found


@pytest.mark.parametrize("kind", ["lora", "adalora"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
@pytest.mark.parametrize("name", PARTS)
def test_shared_computation_equals_separate_layers(
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
def test_graph_has_one_node_per_group(
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
def test_group_without_all_adapters_is_not_shared(
    make: Callable[..., Any], ids: Tensor, name: str, without: str, together: list[int]
) -> None:
    expected, _ = run(attach(make, name, without=without), ids)
    model = attach(make, name, without=without)
    fuse(model)
    assert torch.allclose(run(model, ids)[0], expected, atol=1e-5)
    assert 3 not in together


def test_adapters_with_dropout_are_not_shared(
    make: Callable[..., Any], ids: Tensor, together: list[int]
) -> None:
    model = PeftModel(make("llama"), LoraConfig(r=2, lora_dropout=0.5, target_modules=matrices("llama")))
    fuse(model)
    run(model, ids)
    assert not together


@pytest.mark.parametrize("name", PARTS)
def test_disabled_and_merged_adapters_equal_unfused_output(
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


def test_layer_with_another_input_computes_its_own_output(make: Callable[..., Any], ids: Tensor) -> None:
    """The layer receives another input than its parent, or is called outside its parent."""
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
def test_gradient_checkpointing_gives_the_same_gradients(
    make: Callable[..., Any], ids: Tensor, name: str, together: list[int]
) -> None:
    grads = []
    for checkpointing in (False, True):
        model = attach(make, name).train()
        fuse(model)
        if checkpointing:
            model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
        grads.append(run(model, ids)[1])
    assert len(together) == 3 * 2 * GROUPS[name]
    assert grads[0].keys() == grads[1].keys()
    assert all(torch.allclose(grads[0][key], grads[1][key], atol=1e-6) for key in grads[0])


def test_extra_arguments_reach_the_layer(make: Callable[..., Any], ids: Tensor) -> None:
    """PEFT selects one adapter per row by ``adapter_names``: here none for the first row."""
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


def test_layer_that_lost_its_adapter_after_fuse_is_not_shared(
    make: Callable[..., Any], ids: Tensor, together: list[int]
) -> None:
    """As after AdaLoRA has pruned all ranks of a matrix: the group computes separately."""
    model, plain = attach(make, "bert"), attach(make, "bert")
    fuse(model)
    for one in (model, plain):
        for block in one.get_base_model().bert.encoder.layer:
            block.attention.self.key = block.attention.self.key.base_layer
    assert torch.allclose(model(input_ids=ids).logits, plain(input_ids=ids).logits, atol=1e-5)
    assert not together
