"""The maximum sequence length of a model equals that which plain transformers computes.

A run refuses a longer sequence, or adds a note about it.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from bitrank.errors import UserError
from bitrank.models.locate import locate
from bitrank.models.positions import check_length, table_limit
from bitrank.models.tokens import tokenised
from bitrank.run.data import load_data
from bitrank.spec.make_spec import make_spec
from bitrank.spec.profiles import find_profile
from bitrank.spec.run_spec import RunSpec
from transformers import AutoConfig, AutoModel, AutoTokenizer

POSITIONS = 20
COMMON = {
    "vocab_size": 40,
    "max_position_embeddings": POSITIONS,
    "pad_token_id": 1,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
WIDE = {
    **COMMON,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
GPT = {"vocab_size": 40, "n_positions": POSITIONS, "n_embd": 32, "n_layer": 1, "n_head": 2}
MODELS: dict[str, dict[str, Any]] = {
    "Bert": WIDE,
    "Roberta": WIDE,
    "MPNet": WIDE,
    "Esm": {**WIDE, "mask_token_id": 4, "position_embedding_type": "absolute"},
    "DebertaV2": {**WIDE, "position_biased_input": True},
    "GPT2": GPT,
    "GPTJ": {**GPT, "rotary_dim": 4},
    "OPT": {
        **COMMON,
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "ffn_dim": 32,
        "word_embed_proj_dim": 32,
    },
    "Llama": WIDE,
    "GPTNeoX": WIDE,
    "Bloom": {"vocab_size": 40, "hidden_size": 32, "n_layer": 1, "n_head": 2},
}


def computes(model: Any, length: int) -> bool:
    try:
        with torch.no_grad():
            model(input_ids=torch.full((1, length), 5))
    except (IndexError, RuntimeError):
        return False
    return True


@pytest.mark.parametrize("name", MODELS)
def test_limit_is_the_longest_sequence_that_transformers_computes(name: str) -> None:
    config = getattr(transformers, f"{name}Config")(**MODELS[name])
    model = AutoModel.from_config(config, attn_implementation="eager").eval()
    longest = next(
        (length for length in range(POSITIONS - 5, POSITIONS + 15) if not computes(model, length + 1)), None
    )
    assert table_limit(model) == longest


def saved(name: str, folder: Path) -> str:
    """Save a model of ``MODELS`` with the tokenizer of a tiny model; return its folder."""
    transformers.set_seed(0)
    config = getattr(transformers, f"{name}Config")(**copy.deepcopy(MODELS[name]))
    AutoModel.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(locate("tiny-bert")).save_pretrained(folder)
    return str(folder)


def spec_of(model: str, length: int, task: str = "toy_sentences", **given: object) -> RunSpec:
    return make_spec(
        find_profile("smoke"), "B-FP", task, {"model": model, "max_length": length, "device": "cpu", **given}
    )


@pytest.mark.parametrize(
    ("name", "task", "limit"),
    [
        ("Bert", "toy_sentences", POSITIONS),
        ("Roberta", "toy_sentences", POSITIONS - 2),
        ("GPT2", "toy_articles", POSITIONS),
        ("OPT", "toy_articles", POSITIONS),
    ],
)
def test_length_beyond_the_position_table_is_refused_with_the_limit(
    name: str, task: str, limit: int, tmp_path: Path
) -> None:
    model = saved(name, tmp_path / name)
    assert load_data(spec_of(model, limit, task)).report.counts["texts"]
    with pytest.raises(
        UserError,
        match=rf"max_length {limit + 1} is beyond the {limit} positions of .*max_length={limit} or less",
    ):
        tokenised(spec_of(model, limit + 1, task))


def test_length_beyond_a_rotary_models_training_length_gives_a_note(tmp_path: Path) -> None:
    model = saved("Llama", tmp_path / "llama")
    assert check_length(spec_of(model, POSITIONS, "toy_articles")) is None
    notes = load_data(spec_of(model, POSITIONS + 1, "toy_articles")).report.notes
    assert any(f"max_length {POSITIONS + 1} is beyond the {POSITIONS} positions" in note for note in notes)


def test_model_without_positions_accepts_any_length(tmp_path: Path) -> None:
    assert check_length(spec_of(saved("Bloom", tmp_path / "bloom"), 100_000, "toy_articles")) is None


def test_a_token_that_the_embedding_has_no_row_for_is_refused_by_its_id(tmp_path: Path) -> None:
    model = saved("Bert", tmp_path)
    config = AutoConfig.from_pretrained(model)
    largest = max(int(split.tokens.max()) for split in tokenised(spec_of(model, 16)).splits.values())
    config.vocab_size = largest
    config.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=rf"gives id {largest} \(.*rows for {largest} tokens"):
        tokenised(spec_of(model, 16))
