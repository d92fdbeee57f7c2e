"""Results of a sequence are independent of padding: its amount, id and side."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from bitrank_trainer import (
    OBJECTIVES,
    last_token_head,
    narrow_last_block,
    register_attention,
)
from torch import nn

PAD, EOS, VOCABULARY = 0, 3, 40
TOKENS: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "pad_token_id": PAD,
    "bos_token_id": 2,
    "eos_token_id": EOS,
}
SIZES: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "max_position_embeddings": 64,
}  # fmt: skip
NARROW: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}


@dataclass(frozen=True)
class Architecture:
    """Model family of transformers, sizes of a small model, and whether fused attention applies."""

    family: str
    sizes: dict[str, Any]
    fused: bool = True

    def make(self, head: str, attention: str, **tokens: Any) -> nn.Module:
        torch.manual_seed(0)
        config = getattr(transformers, f"{self.family}Config")(**{**TOKENS, **self.sizes, **tokens})
        kind: Callable[..., Any] = getattr(transformers, f"Auto{head}").from_config
        name = register_attention() if attention == "fused" else attention
        model: nn.Module = kind(config, attn_implementation=name).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(0, 0.15)
        return model


_OPT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "ffn_dim": 48,
    "word_embed_proj_dim": 32,
}
_GEMMA = {**SIZES, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 4}
_SHORT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_LOCAL = {
    "attention_types": [[["global", "local"], 1]],
    "num_layers": 2,
    "num_heads": 4,
    "hidden_size": 32,
    "window_size": 4,
}
ENCODERS = {
    "bert": Architecture("Bert", SIZES),
    "roberta": Architecture("Roberta", SIZES),
    "electra": Architecture("Electra", {**SIZES, "embedding_size": 16}),
    "distilbert": Architecture("DistilBert", {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48}),
}
DECODERS = {
    "llama": Architecture("Llama", SIZES),
    "mistral, window": Architecture("Mistral", {**SIZES, "num_key_value_heads": 2, "sliding_window": 4}),
    "gemma 2": Architecture("Gemma2", _GEMMA, fused=False),
    "gpt2": Architecture("GPT2", NARROW),
    "gpt-bigcode": Architecture("GPTBigCode", NARROW, fused=False),
    "gpt-neo": Architecture("GPTNeo", _LOCAL, fused=False),
    "gpt-neox": Architecture("GPTNeoX", SIZES),
    "bloom": Architecture("Bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4}, fused=False),
    "opt": Architecture("OPT", {**_OPT, "max_position_embeddings": 64}),
    "falcon": Architecture("Falcon", {**_SHORT, "alibi": False}, fused=False),
}
ALL = {**ENCODERS, **DECODERS}


def cases(architectures: dict[str, Architecture]) -> list[Any]:
    return [
        pytest.param(architecture, attention, id=f"{name}-{attention}")
        for name, architecture in architectures.items()
        for attention in ("eager", *(("fused",) if architecture.fused else ()))
    ]


def sequences() -> list[np.ndarray]:
    """Sequences that end in the end-of-sequence or a padding id, or contain these in the middle."""
    random = np.random.default_rng(1)
    rows = [random.integers(4, VOCABULARY, length) for length in (3, 17, 2, 9, 1, 12)]
    rows[0][-1] = EOS
    rows[1][-1] = EOS
    rows[2][:] = EOS
    rows[3][4] = PAD
    return [*rows, np.array([7, 8, 9, 5]), np.array([7, 8, 5])]


def collated(rows: list[np.ndarray], pad: int, lm: bool, left: bool = False) -> dict[str, np.ndarray]:
    width = max(len(row) for row in rows)

    def wide(values: np.ndarray, filler: int) -> np.ndarray:
        missing = width - len(values)
        return np.pad(values, (missing, 0) if left else (0, missing), constant_values=filler)

    return {
        "input_ids": np.stack([wide(row, pad) for row in rows]),
        "attention_mask": np.stack([wide(np.ones_like(row), 0) for row in rows]),
        "labels": np.stack([wide(row, -100) for row in rows]) if lm else np.arange(len(rows)) % 2,
        "index": np.arange(len(rows)),
    }


def logits_and_labels(model: nn.Module, batch: dict[str, np.ndarray]) -> torch.Tensor:
    with torch.no_grad():
        return OBJECTIVES["classification"].logits_and_labels(model, batch, "cpu")[0]


@pytest.mark.parametrize("pad", [PAD, EOS, 5], ids=["pad token", "end of sequence", "word"])
@pytest.mark.parametrize(("architecture", "attention"), cases(ALL))
def test_padded_row_gives_the_same_logits_as_alone(
    architecture: Architecture,
    attention: str,
    pad: int,
) -> None:
    model = architecture.make("ModelForSequenceClassification", attention, pad_token_id=pad)
    rows = sequences()
    if hasattr(getattr(model, "roberta", None), "embeddings"):
        # RoBERTa derives positions from the padding id, so its texts must not contain it.
        rows = [np.where(row == pad, 6, row) for row in rows]
    together = logits_and_labels(model, collated(rows, pad, lm=False))
    alone = torch.cat([logits_and_labels(model, collated([row], pad, lm=False)) for row in rows])
    torch.testing.assert_close(together, alone, atol=2e-5, rtol=1e-4)
    assert len({round(float(value), 4) for value in alone[:, 0]}) > 5, "the rows must differ"


@pytest.mark.parametrize(("architecture", "attention"), cases(DECODERS))
def test_last_real_token_matches_transformers_on_a_single_row(
    architecture: Architecture,
    attention: str,
) -> None:
    """The reference has no padding and no padding id, so it reads the last token in any case."""
    model = architecture.make("ModelForSequenceClassification", attention, pad_token_id=EOS)
    found = logits_and_labels(model, collated(sequences(), EOS, lm=False))
    reference = architecture.make("ModelForSequenceClassification", "eager", pad_token_id=EOS)
    reference.config.pad_token_id = None
    with torch.no_grad():
        wanted = torch.cat([reference(input_ids=torch.from_numpy(row)[None]).logits for row in sequences()])
    torch.testing.assert_close(found, wanted, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["llama", "gpt-neox"])
def test_left_padding_gives_the_same_logits_as_right_padding(name: str) -> None:
    """Rotary positions encode distances only, so the side of the padding has no effect."""
    model = DECODERS[name].make("ModelForSequenceClassification", "eager", pad_token_id=EOS)
    left, right = (
        logits_and_labels(model, collated(sequences(), EOS, lm=False, left=side)) for side in (True, False)
    )
    torch.testing.assert_close(left, right, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["bert", "roberta", "electra"])
def test_narrowed_last_block_ignores_padding(name: str) -> None:
    model = ENCODERS[name].make("ModelForSequenceClassification", "fused")
    rows = [np.where(row == PAD, 6, row) for row in sequences()]
    whole = logits_and_labels(model, collated(rows, PAD, lm=False))
    assert narrow_last_block(model)
    torch.testing.assert_close(
        logits_and_labels(model, collated(rows, PAD, lm=False)), whole, atol=2e-5, rtol=1e-4
    )
    alone = torch.cat([logits_and_labels(model, collated([row], PAD, lm=False)) for row in rows])
    torch.testing.assert_close(alone, whole, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("fused", [True, False], ids=["fused head", "plain head"])
@pytest.mark.parametrize("pad", [PAD, EOS], ids=["pad token", "end of sequence"])
@pytest.mark.parametrize(("architecture", "attention"), cases(DECODERS))
def test_padded_text_has_the_same_loss_as_alone(
    architecture: Architecture,
    attention: str,
    pad: int,
    fused: bool,
) -> None:
    """An end-of-sequence token within the text is predicted, also if its id is the padding id."""
    model = architecture.make("ModelForCausalLM", attention, pad_token_id=pad).requires_grad_(False)
    objective, rows = OBJECTIVES["language-modelling"], sequences()
    objective = objective if fused else objective.plain()
    with torch.no_grad():
        together = objective.rows(model, collated(rows, pad, lm=True), "cpu")
        alone = [objective.rows(model, collated([row], pad, lm=True), "cpu")[0] for row in rows]
    for one, together_row, row in zip(alone, together, rows, strict=True):
        assert together_row["tokens"] == one["tokens"] == len(row) - 1
        assert together_row["loss"] == pytest.approx(one["loss"], rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_gradient_equals_the_mean_over_single_rows(name: str) -> None:
    model = DECODERS[name].make("ModelForSequenceClassification", "eager", pad_token_id=EOS)
    batch = collated(sequences(), EOS, lm=False)
    loss = OBJECTIVES["classification"].loss(model, batch, "cpu")
    (gradient,) = torch.autograd.grad(loss, [model.score.weight])
    shares = [
        torch.autograd.grad(OBJECTIVES["classification"].loss(model, part, "cpu"), [model.score.weight])[0]
        for row, label in zip(sequences(), batch["labels"], strict=True)
        if (part := {**collated([row], EOS, lm=False), "labels": np.array([label])})
    ]
    torch.testing.assert_close(gradient, torch.stack(shares).mean(0), atol=1e-5, rtol=1e-4)


def test_last_token_head_is_none_for_other_models() -> None:
    for architecture in ENCODERS.values():
        assert last_token_head(architecture.make("ModelForSequenceClassification", "eager")) is None
    for architecture in DECODERS.values():
        model = architecture.make("ModelForSequenceClassification", "eager")
        assert last_token_head(model) is model.score
    assert last_token_head(DECODERS["llama"].make("ModelForCausalLM", "eager")) is None


def test_head_hook_is_removed_after_a_batch() -> None:
    model = DECODERS["llama"].make("ModelForSequenceClassification", "eager")
    logits_and_labels(model, collated(sequences(), PAD, lm=False))
    assert not model.score._forward_hooks
