"""Every target has a help line, names a runtime, and refuses runs that it does not support."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import bpe_models
import pytest
import small_models
from bitrank.errors import UserError
from bitrank.export.finished_run import FinishedRun
from bitrank.export.registry import EXPORTS, MERGED, find_target
from bitrank.planning.restrictions import RUNTIMES
from bitrank.spec.make_spec import make_spec
from bitrank.spec.profiles import find_profile

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def test_targets_name_runtimes_and_the_default_exists() -> None:
    assert MERGED in EXPORTS
    assert {target.runtime for target in EXPORTS.values()} <= set(RUNTIMES)
    assert all(target.about for target in EXPORTS.values())


def test_formats_survive_where_the_runtime_stores_them_in_the_planned_bytes() -> None:
    assert EXPORTS["gguf"].survives("int4-g32") and not EXPORTS["gguf"].survives("nf4")
    assert EXPORTS["merged"].survives("nf4")


def test_targets_are_listed_without_loading_a_model_library() -> None:
    code = "import sys, bitrank.cli.export; sys.exit('torch' in sys.modules or 'gguf' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_unknown_targets_and_adapters_apart_are_refused() -> None:
    with pytest.raises(UserError, match="unknown export target 'ggufs'; nearest: gguf"):
        find_target("ggufs", False)
    with pytest.raises(
        UserError, match=r"--to merged cannot keep the adapter apart .* targets that can: mlx, gguf"
    ):
        find_target("merged", True)


def run_of(model: Path, task: str) -> FinishedRun:
    spec = make_spec(find_profile("smoke"), "B-FP", task, {"model": str(model), "max_length": 32})
    return FinishedRun(spec, model, None, {})


@pytest.mark.parametrize(
    ("name", "task", "values", "message"),
    [
        ("llama_gelu", "toy_articles", {}, r"has the activation 'gelu' \(supported: silu\)"),
        ("qwen2", "toy_articles", {}, "has attention in a sliding window"),
        ("bert", "toy_sentences", {}, "does not support BertForSequenceClassification; supported: Llama"),
        ("llama", "toy_sentences", {}, "does not support LlamaForSequenceClassification"),
        ("gptneo", "toy_articles", {}, "does not support GPTNeoForCausalLM"),
        ("phi3", "toy_articles", {}, "does not support Phi3ForCausalLM"),
        ("gemma2", "toy_articles", {}, "does not support Gemma2ForCausalLM"),
        (
            "llama",
            "toy_articles",
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}},
            r"rotary positions of type 'yarn' \(supported: default, linear\)",
        ),
        ("llama", "toy_articles", {"rope_parameters": LLAMA3}, r"rotary positions of type 'llama3'"),
    ],
)
def test_gguf_refuses_models_that_llama_cpp_would_not_compute(
    tmp_path: Path, name: str, task: str, values: dict[str, object], message: str
) -> None:
    bpe_models.write(tmp_path, name, **values)
    with pytest.raises(UserError, match=message):
        EXPORTS["gguf"].check(run_of(tmp_path, task))


def test_gguf_refuses_a_tokenizer_that_it_cannot_hold_before_weights_are_read(tmp_path: Path) -> None:
    small_models.write(tmp_path, "llama")
    with pytest.raises(UserError, match="GGUF cannot hold this tokenizer: its model is WordLevel"):
        EXPORTS["gguf"].check(run_of(tmp_path, "toy_articles"))


def test_gguf_refuses_a_sentence_piece_model_before_anything_is_written(tmp_path: Path) -> None:
    small_models.write(tmp_path / "model", "llama")
    content = json.loads((tmp_path / "model/tokenizer.json").read_text())
    content["model"] = {"type": "BPE", "vocab": {"<unk>": 0}, "merges": [], "byte_fallback": True}
    (tmp_path / "model/tokenizer.json").write_text(json.dumps(content))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match="its model is BPE with byte fallback, that of SentencePiece"):
        EXPORTS["gguf"].check(run_of(tmp_path / "model", "toy_articles"))
    assert sorted(tmp_path.rglob("*")) == before


def test_gguf_accepts_supported_runs_and_writes_nothing_before_the_export(tmp_path: Path) -> None:
    run = run_of(bpe_models.write(tmp_path, "llama"), "toy_articles")
    before = sorted(tmp_path.rglob("*"))
    EXPORTS["gguf"].check(run)
    assert sorted(tmp_path.rglob("*")) == before
