"""Fused forms replace unmodified modules only."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from bitrank_adapters import attach_lora, fuse, uniform_ranks
from bitrank_adapters.fused.norms import fuse_norms, norms_in_fp32
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm
from transformers.models.nemotron.modeling_nemotron import NemotronLayerNorm1P

PARTS = {"llama": "model.layers.0.mlp", "bert": "bert.encoder.layer.0"}


def adapted(make: Any, blocks: Any, name: str, change: Any = None) -> Any:
    """Model with random adapters; ``change`` modifies it before it is fused."""
    model = attach_lora(make(name), uniform_ranks(blocks[name], 4))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "lora_" in key:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    if change is not None:
        change(model.base_model.model)
    return model.eval()


def logits(model: Any, ids: Tensor) -> Tensor:
    return model(input_ids=ids).logits


@pytest.mark.parametrize(
    ("name", "hooked"),
    [
        ("llama", "model.layers.0.mlp.down_proj"),
        ("llama", "model.layers.0.mlp.down_proj.base_layer"),
        ("llama", "model.layers.0.mlp.act_fn"),
        ("llama", "model.layers.1.self_attn.q_proj.base_layer"),
        ("llama", "model.layers.0.mlp.up_proj.lora_A.default"),
        ("bert", "bert.encoder.layer.0.intermediate"),
        ("bert", "bert.encoder.layer.0.output"),
        ("bert", "bert.encoder.layer.1.output.dense.base_layer"),
        ("bert", "bert.encoder.layer.0.intermediate.intermediate_act_fn"),
        ("gpt2", "transformer.h.0.attn.c_attn.base_layer"),
    ],
)
def test_hooks_run_in_a_fused_model(make, blocks, ids, name: str, hooked: str) -> None:
    shapes: list[torch.Size] = []

    def hook(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        shapes.append(args[0].shape)
        return output * 10

    plain, fused = (
        adapted(make, blocks, name, lambda m: m.get_submodule(hooked).register_forward_hook(hook))
        for _ in range(2)
    )
    fuse(fused)
    torch.testing.assert_close(logits(fused, ids), logits(plain, ids))
    assert len(shapes) == 2 and shapes[0] == shapes[1]


class Tripled(LlamaMLP):
    def forward(self, x: Tensor) -> Tensor:
        return 3 * super().forward(x)


def test_subclass_with_another_forward_pass_is_not_fused(make, blocks, ids) -> None:
    def change(model: Any) -> None:
        model.model.layers[0].mlp.__class__ = Tripled

    plain, fused = (adapted(make, blocks, "llama", change) for _ in range(2))
    fuse(fused)
    torch.testing.assert_close(logits(fused, ids), logits(plain, ids))


@pytest.mark.parametrize("name", PARTS)
def test_forward_pass_set_on_an_instance_is_not_replaced(make, blocks, ids, name: str) -> None:
    attribute = "forward" if name == "llama" else "feed_forward_chunk"

    def change(model: Any) -> None:
        part = model.get_submodule(PARTS[name])
        before = getattr(part, attribute)
        setattr(part, attribute, lambda x: 0.5 * before(x))

    plain, fused = (adapted(make, blocks, name, change) for _ in range(2))
    fuse(fused)
    torch.testing.assert_close(logits(fused, ids), logits(plain, ids))


class Shifted(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


def patched() -> nn.Module:
    norm = nn.LayerNorm(16)
    norm.forward = lambda x: 2 * x  # type: ignore[method-assign]
    return norm


class LlamaLike(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.variance_epsilon = nn.Parameter(torch.ones(16)), 1e-6

    def forward(self, x: Tensor) -> Tensor:
        return x - self.weight


LlamaLike.__name__ = "LlamaRMSNorm"  # foreign code may use the same class name


@pytest.mark.parametrize("build", [lambda: Shifted(16), lambda: NemotronLayerNorm1P(16), patched, LlamaLike])
def test_norms_of_another_formula_are_not_fused(build: Any) -> None:
    x = torch.randn(3, 16)
    norm = nn.Sequential(build()).requires_grad_(False)
    expected = norm(x)
    norms_in_fp32(norm)
    fuse_norms(norm)
    assert torch.allclose(norm(x), expected, atol=1e-6)
    assert norm(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("build", [lambda: nn.LayerNorm(16), lambda: LlamaRMSNorm(16)])
def test_norms_of_a_known_formula_are_fused(build: Any) -> None:
    norm = nn.Sequential(build()).requires_grad_(False)
    norms_in_fp32(norm)
    norms_in_fp32(norm)  # attaching adapters calls it again
    fuse_norms(norm)
    assert vars(norm[0])["forward"].func.__name__ in {"_layer_norm", "_rms_norm"}


def test_known_models_are_fused(make, blocks) -> None:
    llama, bert = adapted(make, blocks, "llama"), adapted(make, blocks, "bert")
    for model in (llama, bert):
        fuse(model)
    assert (
        vars(llama.get_submodule("base_model.model.model.layers.0.mlp"))["forward"].func.__name__ == "_gated"
    )
    assert "feed_forward_chunk" in vars(bert.get_submodule("base_model.model.bert.encoder.layer.0"))
    every = [f"model.layers.0.mlp.{part}_proj" for part in ("gate", "up")]
    whole = attach_lora(
        LlamaForCausalLM(
            LlamaConfig(
                vocab_size=32,
                hidden_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                intermediate_size=32,
            )
        ),
        uniform_ranks(every, 2),
    )
    fuse(whole)
    assert (
        vars(whole.get_submodule("base_model.model.model.layers.0.mlp"))["forward"].func.__name__
        == "_together"
    )
