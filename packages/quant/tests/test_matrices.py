"""Roles, layers and shapes of the matrices of every architecture in the study."""

from __future__ import annotations

from collections import Counter

import pytest
from bitrank_quant import block_matrices, weight_matrices
from transformers import BartConfig, BartForConditionalGeneration

# name → matrices per role inside one block
BLOCKS = {
    "bert": {"attention": 4, "ffn": 2},
    "distilbert": {"attention": 4, "ffn": 2},
    "gpt2": {"attention": 2, "ffn": 2},
    "gpt-neo": {"attention": 4, "ffn": 2},
    "llama": {"attention": 4, "ffn": 3},
}


@pytest.mark.parametrize("name", BLOCKS)
def test_every_block_has_its_attention_and_ffn_matrices(make, name: str) -> None:
    blocks = block_matrices(make(name))
    layers = 2 if name == "gpt-neo" else 3
    assert Counter((m.layer, m.role) for m in blocks) == {
        (layer, role): count for layer in range(layers) for role, count in BLOCKS[name].items()
    }


def test_an_encoder_decoder_has_cross_attention_matrices(make) -> None:
    roles = Counter(m.role for m in block_matrices(make("t5")))
    assert roles == {"attention": 16, "cross-attention": 8, "ffn": 8}


def test_cross_attention_of_bart_is_not_self_attention() -> None:
    sizes = {"encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "d_model": 16, "vocab_size": 50}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = BartConfig(**sizes, **heads, encoder_layers=1, decoder_layers=1)
    roles = Counter(m.role for m in block_matrices(BartForConditionalGeneration(config)))
    assert roles == {"attention": 8, "cross-attention": 4, "ffn": 4}


def test_shapes_are_out_by_in_also_for_conv1d(make) -> None:
    shapes = {m.name: m.shape for m in weight_matrices(make("gpt2"))}
    assert shapes["transformer.h.0.attn.c_attn"] == (192, 64)
    assert shapes["transformer.h.0.mlp.c_proj"] == (64, 256)


def test_embeddings_and_heads_are_outside_the_blocks(make) -> None:
    bert = {m.name: (m.role, m.layer) for m in weight_matrices(make("bert"))}
    assert bert["bert.embeddings.word_embeddings"] == ("embedding", None)
    assert bert["classifier"] == ("head", None)
    assert bert["bert.pooler.dense"] == ("other", None)
    llama = {m.name: m.tied_to for m in weight_matrices(make("llama"))}
    assert llama["lm_head"] == "model.embed_tokens"
