"""The peak estimated from a few blocks equals that of a dry run of the whole model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from bitrank.forecast import repeated_blocks
from bitrank.forecast.repeated_blocks import Choice, step_bytes
from bitrank.process.compute import Compute
from bitrank.spec.run_spec import RunSpec

IN_BF16 = Compute("cpu", "bf16", threads=None)
LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 14,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 300,
    "tie_word_embeddings": False,
}
GPT2 = {
    "model_type": "gpt2",
    "architectures": ["GPT2LMHeadModel"],
    "n_embd": 64,
    "n_layer": 14,
    "n_head": 4,
    "vocab_size": 300,
}
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
    settings = {"batch_size": 2, "max_length": 24, "steps": 1, "kind": "language-modelling"}
    return RunSpec(config="B-FP", task="", model=str(folder / "config.json"), **settings)


def choice_of(kind: str, of_block: Any) -> Choice:
    """Return formats and ranks by ``of_block(number, matrix)``, and the head in 8 bits."""
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


def record_depths(monkeypatch: pytest.MonkeyPatch) -> list[int | None]:
    """Return a list that records the depths of the models in later dry runs."""
    seen: list[int | None] = []
    real = repeated_blocks._peak

    def peak(spec: RunSpec, compute: Compute, choice: Choice, depth: int | None) -> int:
        seen.append(depth)
        return real(spec, compute, choice, depth)

    monkeypatch.setattr(repeated_blocks, "_peak", peak)
    return seen


PLANS = {
    "equal blocks": lambda number, place: ("nf4-dq", 4),
    "different ends": lambda number, place: (
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
def test_peak_from_a_few_blocks_equals_that_of_the_whole_model(
    kind: str, config: dict[str, Any], plan: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, choice = spec_of(config, tmp_path), choice_of(kind, PLANS[plan])
    whole = repeated_blocks._peak(spec, IN_BF16, choice, None)
    depths = record_depths(monkeypatch)
    assert step_bytes(spec, choice, IN_BF16) == whole
    assert set(depths) == {2, 3}


@pytest.mark.parametrize("reason", ["every block differs", "two attention types"])
def test_models_without_repeated_blocks_are_run_whole(
    reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, of_block = LLAMA, PLANS["equal blocks"]
    if reason == "every block differs":
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
    spec, depths = spec_of(config, tmp_path), record_depths(monkeypatch)
    assert step_bytes(spec, choice_of("llama", of_block), IN_BF16) > 0
    assert depths == [None]
