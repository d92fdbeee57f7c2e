"""Exports for compressed-tensors: transformers loads them with the logits of the merged model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from bitrank.cli.main import main
from bitrank.errors import UserError
from bitrank.export.finished_run import FinishedRun, find_run
from bitrank.export.packed import WEIGHTS
from bitrank.export.prepared import Options, write_export
from bitrank.export.rebuild import rebuild
from bitrank.export.registry import EXPORTS
from bitrank.spec.make_spec import make_spec
from bitrank.spec.profiles import find_profile
from bitrank_quant import parse_format, stored_weight
from finished_runs import llama_plan, train
from safetensors.torch import load_file
from small_models import write
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

SHAPE_BYTES = 16  # two int64 for each packed matrix
IDS = torch.tensor([[2, 4, 5, 7, 6, 11, 4, 12]])
TARGET = "compressed-tensors"
# Fused matrices of a block (the first three, and the fifth and sixth) share a format.
FORMATS = ("sym4-g32", "sym4-g32", "sym4-g32", "bf16", "sym8-g32", "sym8-g32", "sym4-g32")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    folder = tmp_path_factory.mktemp("compressed")
    model = write(folder / "model", "llama_tied")
    plan = llama_plan(lambda n: FORMATS[n % 7], "bf16", lambda n: (0, 2, 4)[n % 3])
    return find_run(train(folder, model, plan))


def exported(run: FinishedRun, out: Path) -> Any:
    rebuilt = rebuild(run)
    prepared = EXPORTS[TARGET].prepare(rebuilt, Options(TARGET, False, "gptq"))
    write_export(prepared, out)
    return rebuilt, prepared


def assert_loads_with_equal_logits(folder: Path, rebuilt: Any, auto: Any) -> None:
    pytest.importorskip("compressed_tensors", reason="needs the package compressed-tensors")
    loaded = auto.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        logits, expected = loaded(input_ids=IDS).logits, rebuilt.inner(input_ids=IDS).logits
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-4)


def test_transformers_loads_the_logits_of_the_merged_model(run: FinishedRun, tmp_path: Path) -> None:
    rebuilt, _ = exported(run, tmp_path / "out")
    assert_loads_with_equal_logits(tmp_path / "out", rebuilt, AutoModelForCausalLM)


def test_planned_bytes_of_matrices_are_those_of_the_file(run: FinishedRun, tmp_path: Path) -> None:
    _, prepared = exported(run, tmp_path / "out")
    rebuilt = rebuild(run)
    tensors = load_file(tmp_path / "out" / WEIGHTS)
    stored: dict[str, int] = dict.fromkeys(run.precision or {}, 0)
    for name, tensor in tensors.items():
        owner, _, leaf = name.rpartition(".")
        if owner in stored and leaf not in ("bias", "weight_shape"):
            stored[owner] += tensor.nbytes
    for name, text in (run.precision or {}).items():
        shape = stored_weight(rebuilt.layer(name)).shape
        assert stored[name] == parse_format(text).nbytes((shape[0], shape[1])), name
    packed = sum(name.endswith("weight_packed") for name in tensors)
    assert packed == 12
    matrices = sum(stored.values()) + SHAPE_BYTES * packed
    assert f"{matrices:,} bytes in matrices" in prepared.notes[0]


def test_fused_matrices_share_a_format_and_tables_stay_in_16_bits(tmp_path: Path) -> None:
    model = write(tmp_path / "model", "llama_tied")
    formats = ("int8", "nf4", "int3-g32", "nf4", "int4-g32", "bf16", "nf3")
    plan = llama_plan(lambda n: formats[n % 7], "int6-g32", lambda n: 2)
    rebuilt, prepared = exported(find_run(train(tmp_path, model, plan)), tmp_path / "out")
    rows = prepared.audit.matrices
    names: list[str] = list(plan["precision"])  # type: ignore[call-overload]
    stored = [rows[name].stored if name in rows else "bf16" for name in names]
    assert stored[0] == "bf16", "vLLM looks rows up in 16 bits"
    assert stored[1:8] == ["sym8-g32", "sym8-g32", "sym8-g32", "sym4-g32", "bf16", "bf16", "sym4-g64"]
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    targets = {
        (group["weights"]["num_bits"], group["weights"]["group_size"]): len(group["targets"])
        for group in config["config_groups"].values()
    }
    assert targets == {(8, 32): 6, (4, 32): 2, (4, 64): 2}
    assert_loads_with_equal_logits(tmp_path / "out", rebuilt, AutoModelForCausalLM)


def test_a_classifier_is_exported_with_its_trained_head(tmp_path: Path) -> None:
    model = write(tmp_path / "model", "bert")
    names = ("attention.self.query", "attention.self.key", "attention.self.value", "output.dense")
    layers = [f"bert.encoder.layer.{layer}.{name}" for layer in range(2) for name in names]
    plan: dict[str, object] = {
        "precision": dict.fromkeys(layers, "sym4-g32"),
        "ranks": dict.fromkeys(layers, 2),
    }
    rebuilt, _ = exported(find_run(train(tmp_path, model, plan, "toy_sentences")), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["BertForSequenceClassification"], "the base's file has a BertModel"
    assert_loads_with_equal_logits(tmp_path / "out", rebuilt, AutoModelForSequenceClassification)


def test_a_plan_for_vllm_takes_its_bytes_in_the_file(tmp_path: Path) -> None:
    """From ``bitrank plan --for vllm`` to the export; each packed matrix has its shape besides."""
    model = write(tmp_path / "model", "llama_tied", hidden_size=64, intermediate_size=128)
    saved, config = tmp_path / "saved.json", str(model / "config.json")
    options = ("--budget", "8bits", "--ranks", "2,4", "--for", "vllm", "--save", str(saved))
    assert main(["plan", "--model", config, *options]) == 0
    plan = json.loads(saved.read_text())
    formats = plan["precision"]
    assert formats["model.embed_tokens"] == "bf16"
    for layer in range(2):
        block = f"model.layers.{layer}"
        assert len({formats[f"{block}.self_attn.{part}_proj"] for part in "qkv"}) == 1
        assert len({formats[f"{block}.mlp.{part}_proj"] for part in ("gate", "up")}) == 1
    _, prepared = exported(find_run(train(tmp_path, model, plan)), tmp_path / "out")
    assert not prepared.audit.replaced()
    tensors = load_file(tmp_path / "out" / WEIGHTS)
    matrices = sum(parse_format(formats[name]).nbytes(tuple(shape)) for name, shape in plan["shapes"].items())
    packed = sum(name.endswith("weight_packed") for name in tensors)
    assert packed
    assert f"{matrices + SHAPE_BYTES * packed:,} bytes in matrices" in prepared.notes[0]
    assert prepared.audit.weight_bytes == sum(tensor.nbytes for tensor in tensors.values())


def run_of(folder: Path, name: str, task: str) -> FinishedRun:
    given = {"model": str(write(folder / "model", name))}
    return FinishedRun(make_spec(find_profile("smoke"), "B-FP", task, given), folder, None, {})


def test_models_with_conv1d_layers_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the matrices of gpt2 are Conv1D layers; export it with --to merged"):
        EXPORTS[TARGET].check(run_of(tmp_path, "gpt2", "toy_articles"))


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("t5", "toy_summaries"),
        ("modernbert", "toy_sentences"),
        ("falcon", "toy_articles"),
        ("gptbigcode", "toy_articles"),
    ],
)
def test_models_that_transformers_does_not_load_packed_are_rejected(
    tmp_path: Path, name: str, task: str
) -> None:
    with pytest.raises(UserError, match=r"does not load packed weights.*; export it with --to merged"):
        EXPORTS[TARGET].check(run_of(tmp_path, name, task))


def refusal(run: FinishedRun) -> str:
    """Why the export refuses ``run``; empty if it accepts it."""
    try:
        EXPORTS[TARGET].check(run)
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", ["llama_tied", "mixtral", "gemma2", "qwen2", "phi3"])
def test_models_that_transformers_loads_packed_are_accepted(tmp_path: Path, name: str) -> None:
    assert refusal(run_of(tmp_path, name, "toy_articles")) == ""


def test_an_encoder_decoder_that_transformers_loads_packed_is_accepted(tmp_path: Path) -> None:
    assert refusal(run_of(tmp_path, "bart", "toy_summaries")) == ""
