"""A few blocks rehearsed, counted as often as they come, against the whole model rehearsed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from bitrank.forecast import repeated_blocks
from bitrank.forecast.repeated_blocks import Choice, step_bytes
from bitrank.spec.run_spec import RunSpec

LLAMA = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 14,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 300, "tie_word_embeddings": False,
}  # fmt: skip
GPT2 = {
    "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_embd": 64, "n_layer": 14, "n_head": 4, "vocab_size": 300,
}  # fmt: skip
NAMES = {
    "llama": (
        "model.layers",
        ("self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj", "mlp.down_proj"),
        "lm_head",
    ),
    "gpt2": ("transformer.h", ("attn.c_attn", "mlp.c_fc"), "transformer.wte"),
}


def spec_of(config: dict[str, Any], folder: Path) -> RunSpec:
    (folder / "config.json").write_text(json.dumps(config))
    words = {"batch_size": 2, "max_length": 24, "steps": 1, "kind": "language-modelling"}
    return RunSpec(config="B-FP", task="", model=str(folder / "config.json"), **words)


def choice_of(kind: str, of_block: Any) -> Choice:
    """Ranks and formats by ``of_block(number, matrix)``, and the head in 8 bits."""
    prefix, matrices, head = NAMES[kind]
    chosen = {
        f"{prefix}.{number}.{name}": of_block(number, place)
        for number in range(14)
        for place, name in enumerate(matrices)
    }
    return Choice(
        {head: "int8", **{name: fmt for name, (fmt, _) in chosen.items()}},
        {name: rank for name, (_, rank) in chosen.items()},
    )


def depths(monkeypatch: pytest.MonkeyPatch) -> list[int | None]:
    """The depths of the models that are rehearsed from here on."""
    seen: list[int | None] = []
    real = repeated_blocks._peak

    def peak(spec: RunSpec, choice: Choice, depth: int | None, dtype: torch.dtype) -> int:
        seen.append(depth)
        return real(spec, choice, depth, dtype)

    monkeypatch.setattr(repeated_blocks, "_peak", peak)
    return seen


PLANS = {
    "all alike": lambda number, place: ("nf4-dq", 4),
    "ends differ": lambda number, place: (
        "int8" if number in (0, 13) else "nf4-dq",
        16 if number == 13 else 2,
    ),
    "three kinds": lambda number, place: (
        "bf16" if number % 3 == 0 and place == 1 else "int4-g64",
        (2, 6, 24)[number % 3],
    ),
}


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize(("kind", "config"), [("llama", LLAMA), ("gpt2", GPT2)])
def test_few_blocks_tell_what_all_of_them_take(
    kind: str, config: dict[str, Any], plan: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, choice = spec_of(config, tmp_path), choice_of(kind, PLANS[plan])
    whole = repeated_blocks._peak(spec, choice, None, torch.bfloat16)
    rehearsed = depths(monkeypatch)
    assert step_bytes(spec, choice, torch.bfloat16) == whole
    assert set(rehearsed) == {2, 3}


@pytest.mark.parametrize("reason", ["every block its own", "layers of two types"])
def test_other_models_are_rehearsed_whole(
    reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, of_block = LLAMA, PLANS["all alike"]
    if reason == "every block its own":
        of_block = lambda number, place: ("nf4-dq", number + 1)  # noqa: E731
    else:
        types = ["full_attention" if number % 2 else "sliding_attention" for number in range(14)]
        config = LLAMA | {
            "model_type": "qwen2",
            "layer_types": types,
            "use_sliding_window": True,
            "sliding_window": 8,
            "max_window_layers": 7,
        }
    spec, rehearsed = spec_of(config, tmp_path), depths(monkeypatch)
    assert step_bytes(spec, choice_of("llama", of_block), torch.bfloat16) > 0
    assert rehearsed == [None]
