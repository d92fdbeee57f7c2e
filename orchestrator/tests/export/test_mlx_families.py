"""Configurations that mlx-lm computes differently are refused before any weight is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from bitrank.errors import UserError
from bitrank.export.finished_run import FinishedRun, find_run
from bitrank.export.mlx import mlx_config, pack_mlx
from bitrank.export.mlx_families import MODEL_TYPES
from bitrank.export.packed import WEIGHTS
from bitrank.export.prepared import Options
from bitrank.export.rebuild import rebuild
from bitrank.export.registry import EXPORTS
from bitrank.export.tensors import file_tensors, round_to_state
from bitrank.spec.make_spec import make_spec
from bitrank.spec.profiles import find_profile
from finished_runs import train
from safetensors.torch import save_file
from small_models import ARCHITECTURES, write

YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 32}
LONG = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.1] * 4, "long_factor": [2.0] * 4}
WINDOW = 8


def run_of(folder: Path, name: str, max_length: int = WINDOW, **values: Any) -> FinishedRun:
    model = write(folder / "model", name, **values)
    given = {"model": str(model), "max_length": max_length}
    return FinishedRun(make_spec(find_profile("smoke"), "B-FP", "toy_articles", given), folder, None, {})


def refusal(run: FinishedRun) -> str:
    """Why the export refuses ``run``; empty if it accepts it."""
    try:
        EXPORTS["mlx"].check(run)
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", [name for name in MODEL_TYPES if name in ARCHITECTURES])
def test_configurations_of_published_models_are_accepted(tmp_path: Path, name: str) -> None:
    """Without a window, or one that no layer uses (Qwen2), or one that texts stay within (Gemma 2)."""
    run = run_of(tmp_path, name, **({"sliding_window": None} if name == "mistral" else {}))
    assert refusal(run) == ""


@pytest.mark.parametrize(
    ("name", "values", "problem"),
    [
        ("mistral", {}, "attention in a sliding window of 8 tokens"),
        ("phi3", {"sliding_window": 8}, "attention in a sliding window of 8 tokens"),
        ("qwen2", {"max_window_layers": 1}, "attention in a sliding window of 8 tokens"),
        (
            "qwen3",
            {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0},
            "attention in a sliding window of 8 tokens",
        ),
        ("gemma", {"hidden_act": "relu"}, r"the activation 'relu' \(supported: gelu_pytorch_tanh\)"),
        ("gemma2", {"hidden_activation": "gelu"}, r"the activation 'gelu' \(supported: gelu_pytorch_tanh\)"),
        ("olmo2", {"hidden_act": "gelu"}, r"the activation 'gelu' \(supported: silu\)"),
        ("llama", {"hidden_act": "gelu"}, r"the activation 'gelu' \(supported: silu\)"),
        ("gemma", {"attention_bias": True}, "biases in its attention"),
        ("gemma2", {"attention_bias": True}, "biases in its attention"),
        ("qwen3", {"attention_bias": True}, "biases in its attention"),
        ("gemma", {"rope_parameters": YARN}, r"rotary positions of type 'yarn' \(supported: default\)"),
        ("phi3", {"rope_parameters": LONG}, r"rotary positions of type 'longrope' \(supported: default\)"),
        ("gemma2", {"attn_logit_softcapping": None}, "no soft caps of its logits"),
    ],
)
def test_what_mlx_lm_computes_differently_is_refused(
    tmp_path: Path, name: str, values: dict[str, Any], problem: str
) -> None:
    run = run_of(tmp_path, name, **values)
    with pytest.raises(UserError, match=f"this {name} model has {problem}.*; export it with --to merged"):
        EXPORTS["mlx"].check(run)


def test_gemma2_is_refused_for_texts_longer_than_its_window(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="this gemma2 model has attention in a sliding window of 8 tokens"):
        EXPORTS["mlx"].check(run_of(tmp_path, "gemma2", max_length=WINDOW + 1))


def test_export_of_gemma2_notes_that_mlx_lm_does_not_slide(tmp_path: Path) -> None:
    name = "model.layers.0.mlp.up_proj"
    plan: dict[str, object] = {"precision": {name: "int4-g32"}, "ranks": {name: 2}}
    run = find_run(train(tmp_path, write(tmp_path / "model", "gemma2", sliding_window=48), plan))
    prepared = EXPORTS["mlx"].prepare(rebuild(run), Options("mlx", False, "rtn"))
    assert "layers of this model attend to the last 48 tokens; in mlx-lm they attend to" in prepared.notes[-1]


def mlx_difference(folder: Path, name: str, ids: list[int], **values: Any) -> Any:
    """The largest difference of logits between mlx-lm and transformers, at each position of ``ids``."""
    mx = pytest.importorskip("mlx.core", reason="needs the packages mlx[cpu] and mlx-lm")
    utils = pytest.importorskip("mlx_lm.utils", reason="needs the packages mlx[cpu] and mlx-lm")
    write(folder, name, **values)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    round_to_state(model)
    found = file_tensors(model, pack_mlx)
    save_file(found.tensors, folder / WEIGHTS)
    (folder / "config.json").write_text(json.dumps(mlx_config(model, found)))
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([ids])).logits[0].numpy()
    loaded, _ = utils.load_model(folder)
    loaded.set_dtype(mx.float32)
    return np.abs(np.array(loaded(mx.array([ids])))[0] - expected).max(axis=1)


def test_gemma2_is_exact_up_to_its_window_and_not_beyond(tmp_path: Path) -> None:
    values = {"attn_logit_softcapping": 50.0, "layer_types": ["sliding_attention"] * 2}
    difference = mlx_difference(tmp_path, "gemma2", list(range(2, 14)), **values)
    assert difference[:WINDOW].max() < 1e-4 < 1e-2 < difference[WINDOW:].max()


def test_partly_rotated_heads_are_those_of_the_model(tmp_path: Path) -> None:
    rope = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
    difference = mlx_difference(tmp_path, "phi3", list(range(2, 14)), rope_parameters=rope)
    assert difference.max() < 1e-4
