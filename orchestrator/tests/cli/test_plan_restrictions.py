"""``bitrank plan --tie``, ``--for`` and ``--max-rank`` on a config alone, which needs no measurement."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from bitrank.cli.main import main

CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 256,
}


@pytest.fixture
def model(tmp_path: Path) -> tuple[str, str]:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return ("--model", str(tmp_path / "config.json"))


def planned(capsys: Any, *arguments: str) -> dict[str, Any]:
    assert main(["plan", *arguments, "--json"]) == 0
    return dict(json.loads(capsys.readouterr().out))


def test_tied_matrices_share_a_format_and_the_plan_costs_no_less(model: tuple[str, str], capsys: Any) -> None:
    arguments = (*model, "--budget", "5.3bits", "--ranks", "4,8")
    free = planned(capsys, *arguments)
    tied = planned(capsys, *arguments, "--tie", "qkv,gate-up")
    assert tied["predicted_added_loss"] >= free["predicted_added_loss"] * (1 - 1e-6)
    for layer in range(3):
        block = f"model.layers.{layer}"
        attention = {tied["precision"][f"{block}.self_attn.{part}_proj"] for part in "qkv"}
        feed_forward = {tied["precision"][f"{block}.mlp.{part}_proj"] for part in ("gate", "up")}
        assert len(attention) == len(feed_forward) == 1
    assert tied["bytes"] <= tied["budget"]


def test_a_runtime_and_a_largest_rank_restrict_the_plan(model: tuple[str, str], capsys: Any) -> None:
    data = planned(capsys, *model, "--budget", "9bits", "--for", "gguf", "--max-rank", "4")
    assert set(data["precision"].values()) <= {"int4-g32", "int5-g32", "bf16"}
    assert max(data["ranks"].values()) <= 4


def test_the_limit_on_trained_numbers_holds_for_a_config_alone(model: tuple[str, str], capsys: Any) -> None:
    """Rank 4 everywhere trains 3 × 4 × (2 × 256 + 2 × 192 + 3 × 384) numbers."""
    arguments = ("plan", *model, "--budget", "9bits", "--ranks", "4,8", "--max-trainable")
    assert main([*arguments, "24575"]) == 2
    assert "every plan has 24,576 or more" in capsys.readouterr().err
    assert main([*arguments, "24576", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["trainable"] == 24_576


def test_two_numbers_of_a_random_plan_are_two_plans(model: tuple[str, str], capsys: Any) -> None:
    random = (*model, "--budget", "9bits", "--planner", "random-plan")
    plans = [planned(capsys, *random, "--random-plan-number", number) for number in "0101"]
    chosen = [(plan["precision"], plan["ranks"]) for plan in plans]
    assert chosen[0] == chosen[2] != chosen[1] == chosen[3]


def test_conflicts_are_rejected(model: tuple[str, str], capsys: Any) -> None:
    def rejected(*arguments: str) -> str:
        assert main(["plan", *model, "--budget", "5bits", *arguments]) == 2
        return str(capsys.readouterr().err)

    pins = ("--pin", "q_proj=int8", "--pin", "k_proj=int4-g64-dq")
    assert "tied matrices share one format" in rejected("--tie", "qkv", *pins)
    assert "mlx cannot store nf4-dq" in rejected("--for", "mlx", "--formats", "nf4-dq")
    assert "unknown runtime 'tgi'" in rejected("--for", "tgi")
    assert "unknown tie 'kv'" in rejected("--tie", "kv")
    assert "cannot tie formats" in rejected("--tie", "qkv", "--planner", "hand-made")
    assert "no rank up to 4 is offered" in rejected("--ranks", "8", "--max-rank", "4")
