"""Residual initialization over real formats and backends: stored weight plus adapter is nearer to 16 bits."""

from __future__ import annotations

import pytest
import torch
from bitrank_adapters import AdaLora, ResidualStart, adapted, attach_adalora, attach_lora, weighted_norm
from bitrank_quant import Encoding, apply_precision, block_matrices, stored_weight, weight_matrices
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)
from transformers.pytorch_utils import Conv1D

TOKENS = {"vocab_size": 96, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
MODELS = {
    "bert": lambda: BertForSequenceClassification(
        BertConfig(
            **TOKENS, hidden_size=64, num_hidden_layers=1, num_attention_heads=4, intermediate_size=128
        )
    ),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**TOKENS, n_embd=64, n_layer=1, n_head=4)),
    "llama": lambda: LlamaForCausalLM(
        LlamaConfig(
            **TOKENS,
            hidden_size=64,
            num_hidden_layers=1,
            num_attention_heads=4,
            intermediate_size=128,
            tie_word_embeddings=True,
        )
    ),
}
RANK = 8


def made(name: str):
    torch.manual_seed(0)
    return MODELS[name]().to(torch.bfloat16).eval().requires_grad_(False)


def weights_of(model):
    found = {}
    for m in block_matrices(model):
        weight = model.get_submodule(m.name).weight.detach()
        found[m.name] = (
            (weight.T if isinstance(model.get_submodule(m.name), Conv1D) else weight).float().clone()
        )
    return found


def pair_of(shape):
    source = torch.Generator().manual_seed(shape[0])
    return torch.rand(shape[0], generator=source) ** 2, torch.rand(shape[1], generator=source) ** 2


def moved(layer, x_NI):
    """The adapter's contribution to the output in PEFT's own forward pass, in fp32."""
    layer.base_layer = torch.nn.Linear(x_NI.shape[1], layer.out_features, bias=False).requires_grad_(False)
    torch.nn.init.zeros_(layer.base_layer.weight)
    return layer(x_NI)


CASES = [(fmt, "auto") for fmt in ("nf4-dq", "nf4", "int8", "llm-int8", "int3-g64", "int4-g64", "int2-g64")]
CASES += [
    ("nf4-dq", "cpu-int8"),
    ("nf4-dq", "quanto-int4"),
    ("nf4-dq", "quanto-int8"),
    ("int4-g64", "cpu-4bit"),
]


@pytest.mark.parametrize("kind", ["lora", "adalora"])
@pytest.mark.parametrize(("text", "backend"), CASES)
@pytest.mark.parametrize("name", MODELS)
def test_adapter_reduces_the_quantization_error_as_reported(
    name: str, text: str, backend: str, kind: str
) -> None:
    model = made(name)
    wanted = weights_of(model)
    weighted = kind == "lora"
    weights = {n: pair_of(w.shape) for n, w in wanted.items()} if weighted else None
    start = ResidualStart(dict.fromkeys(wanted, RANK), rounds=3, weights=weights)
    apply_precision(model, dict.fromkeys(wanted, text), quant_backend=backend, encoding=Encoding(start.split))
    plain = made(name)
    apply_precision(plain, dict.fromkeys(wanted, text), quant_backend=backend)
    if kind == "lora":
        model = attach_lora(model, dict.fromkeys(wanted, RANK))
    else:
        model = attach_adalora(model, list(wanted), AdaLora(RANK, 2), total_steps=50)
    start.write(model)
    for n, layer in adapted(model):
        pair = weights[n] if weights else None
        stored = stored_weight(layer.base_layer).float()
        without = weighted_norm(wanted[n] - stored_weight(plain.get_submodule(n)).float(), pair)
        added = moved(layer, torch.eye(layer.in_features)).T
        left = weighted_norm(wanted[n] - stored - added, pair)
        assert left < without
        assert (without, left) == pytest.approx(start.errors[n], rel=2e-3)


@pytest.mark.parametrize("text", ["nf4-dq", "llm-int8", "int8", "int3-g64", "bf16"])
def test_stored_weight_is_the_matrix_of_the_layers_product(text: str) -> None:
    model = made("bert")
    matrices = block_matrices(model)
    apply_precision(model, {m.name: text for m in matrices})
    for m in matrices:
        layer = model.get_submodule(m.name)
        x = torch.randn(4, m.shape[1], generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
        want = x.float() @ stored_weight(layer).float().T + layer.bias.float()
        for _ in range(2):  # bitsandbytes rearranges its codes at the first call
            assert (layer(x).float() - want).norm() < 0.02 * want.norm()
            assert stored_weight(layer).shape == m.shape


def test_16_bit_matrices_and_embeddings_are_never_split() -> None:
    model, split_names = made("llama"), []
    formats = {"embedding": "int8", "attention": "bf16"}
    untied = [m for m in weight_matrices(model) if m.tied_to is None]
    plan = {m.name: formats.get(m.role, "nf4") for m in untied}
    encoding = Encoding(lambda name, weight, stored: split_names.append(name) or weight)
    apply_precision(model, plan, encoding=encoding)
    assert split_names == [m.name for m in block_matrices(made("llama")) if m.role == "ffn"]
