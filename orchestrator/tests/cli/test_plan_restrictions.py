"""``bitrank plan --tie``, ``--for`` and ``--max-rank`` on a config alone, which needs no measurement."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import bpe_models
import pytest
import small_models
from bitrank.cli.main import main
from bitrank.planning.bits_of_budgets import sufficient_bits

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


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


@pytest.mark.parametrize(
    ("runtime", "values", "problem"),
    [
        ("gguf", {"model_type": "phi3"}, "GGUF export does not support Phi3ForCausalLM"),
        ("gguf", {"model_type": "gemma2"}, "GGUF export does not support Gemma2ForCausalLM"),
        ("gguf", {"rope_scaling": LLAMA3}, "this LlamaForCausalLM has rotary positions of type 'llama3'"),
        ("mlx", {"model_type": "gpt_neox"}, "the architecture gpt_neox cannot be exported for mlx-lm"),
        ("vllm", {"model_type": "gpt2"}, "the matrices of gpt2 are Conv1D layers"),
    ],
)
@pytest.mark.parametrize("option", [("--budget", "9bits"), ("--budgets", "9bits,10bits")])
def test_a_model_that_the_export_refuses_is_refused_before_the_plan(
    tmp_path: Path, capsys: Any, runtime: str, values: dict[str, Any], problem: str, option: tuple[str, str]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, **values}))
    assert main(["plan", "--model", str(tmp_path), *option, "--for", runtime]) == 2
    assert problem in capsys.readouterr().err


def test_a_tokenizer_that_the_export_refuses_is_refused_before_the_measurement(
    tmp_path: Path, capsys: Any
) -> None:
    small_models.write(tmp_path / "words", "llama")
    model = ("--model", str(tmp_path / "words"))
    given = ("--profile", "smoke", "--task", "toy_articles", "--budget", "9bits", "--for", "gguf")
    assert main(["plan", *model, *given]) == 2
    found = capsys.readouterr().err
    assert "GGUF cannot hold this tokenizer: its model is WordLevel" in found and "measuring" not in found


def test_a_tokenizer_beside_a_config_alone_is_checked(
    model: tuple[str, str], tmp_path: Path, capsys: Any
) -> None:
    bpe_models.write_tokenizer(tmp_path)
    arguments = ("--budget", "9bits", "--for", "gguf")
    assert main(["plan", *model, *arguments]) == 2
    assert "token id 301, but the model has 256 embeddings" in capsys.readouterr().err


def test_a_budget_in_bits_that_is_too_small_is_answered_in_bits(model: tuple[str, str], capsys: Any) -> None:
    assert main(["plan", *model, "--budget", "2bits"]) == 2
    found = re.search(r"Give ([\d,]+) or more \(([\d.]+) bits per parameter\)", capsys.readouterr().err)
    assert found
    assert planned(capsys, *model, "--budget", f"{found[2]}bits")["bytes"] >= int(found[1].replace(",", ""))
    assert main(["plan", *model, "--budget", f"{float(found[2]) - 0.01:.2f}bits"]) == 2
    capsys.readouterr()
    assert main(["plan", *model, "--budget", "20kB"]) == 2
    assert "bits per parameter" not in capsys.readouterr().err
    assert main(["plan", *model, "--budgets", "2bits,9bits"]) == 2
    assert f"({found[2]} bits per parameter)" in capsys.readouterr().err


def test_sufficient_bits_are_the_fewest_hundredths_that_give_the_bytes() -> None:
    assert sufficient_bits(700, 1000) == 5.6
    assert sufficient_bits(701, 1000) == 5.61
    assert all(int(sufficient_bits(n, 977) * 977 / 8) >= n for n in range(1, 900))


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
