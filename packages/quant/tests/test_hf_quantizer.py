"""``from_pretrained`` with a plan equals applying the plan afterwards, and survives saving and loading."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from bitrank_quant import QuantEmbedding, QuantError, QuantLinear, QuantWeight, parse_format, weight_matrices
from bitrank_quant.hf_quantizer import BitrankConfig
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

IDS = torch.arange(1, 25).view(2, 12)
TOKENS = {"vocab_size": 96, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "num_key_value_heads": 2,
}
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**TOKENS, **SIZES)),
    "tied": lambda: LlamaForCausalLM(
        LlamaConfig(**TOKENS, **SIZES, tie_word_embeddings=True, attention_bias=True)
    ),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**TOKENS, n_embd=64, n_layer=2, n_head=4, n_positions=32)),
    "mixtral": lambda: MixtralForCausalLM(MixtralConfig(**TOKENS, **SIZES, num_local_experts=4)),
}


@pytest.fixture(params=list(MODELS))
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    MODELS[request.param]().save_pretrained(tmp_path / "plain")
    return tmp_path / "plain"


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits.float()


def load(folder: Path, **options: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, **options)


def plan_of(model: Any) -> dict[str, str]:
    matrices = [m for m in weight_matrices(model) if m.tied_to is None]
    formats = ["int4-g64", "nf4-dq", "int3-g64"]
    return {m.name: formats[n % 3] for n, m in enumerate(matrices)}


def decoded(module: Any, text: str) -> torch.Tensor:
    """The decoded weight of ``module`` after storing it as ``text``, in the layout of ``module``."""
    transposed = type(module).__name__ == "Conv1D"
    weight_OI = module.weight.T.contiguous() if transposed else module.weight
    stored_OI = QuantWeight(weight_OI.detach(), parse_format(text), torch.bfloat16).decode()
    return stored_OI.T if transposed else stored_OI


def test_loaded_with_a_plan_computes_with_the_decoded_matrices_of_the_loaded_model(folder: Path) -> None:
    expected = load(folder)
    plan = plan_of(expected)
    got = load(folder, quantization_config=BitrankConfig(plan))
    for name, text in plan.items():
        module = expected.get_submodule(name)
        module.weight.data.copy_(decoded(module, text))
    assert torch.equal(logits(got), logits(expected))
    assert all(isinstance(got.get_submodule(name), (QuantLinear, QuantEmbedding)) for name in plan)


def test_saved_model_loads_again_with_the_same_codes(folder: Path, tmp_path: Path) -> None:
    plan = plan_of(load(folder))
    saved = load(folder, quantization_config=BitrankConfig(plan))
    saved.save_pretrained(tmp_path / "quantized")
    again = load(tmp_path / "quantized")
    assert again.config.quantization_config.plan == saved.config.quantization_config.plan
    got, want = again.state_dict(), saved.state_dict()
    assert got.keys() == want.keys()
    assert [
        key for key in want if not torch.equal(got[key], want[key]) or got[key].dtype != want[key].dtype
    ] == []
    assert torch.equal(logits(again), logits(saved))
    plain, small = ((path / "model.safetensors").stat().st_size for path in (folder, tmp_path / "quantized"))
    assert small < plain / 2


def test_plan_for_another_model_is_refused_by_name(folder: Path) -> None:
    with pytest.raises(QuantError, match=r"names 'model.layers.9.mlp.up_proj', which is no weight matrix"):
        load(folder, quantization_config=BitrankConfig({"model.layers.9.mlp.up_proj": "int8"}))
