"""GGUF files hold the weights of a run, in the planned bytes where the types hold the formats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import bpe_models
import gguf
import numpy as np
import pytest
import torch
from bitrank.cli.main import main
from bitrank.export.finished_run import find_run
from bitrank.export.gguf.prepare import prepare_gguf
from bitrank.export.prepared import Options, write_export
from bitrank.export.rebuild import Rebuilt, rebuild
from bitrank_quant import block_matrices, weight_matrices
from transformers import AutoModelForCausalLM, AutoTokenizer

# Types of GGUF hold these in the planned bytes; the other formats below need another type.
HELD = ("int4-g32", "int5-g32", "bf16")
MIXED = (*HELD, "int8", "nf4", "int6-g32", "int3-g32")
IDS = torch.randint(2, 290, (2, 12), generator=torch.Generator().manual_seed(0))


def finished_run(
    folder: Path, name: str, formats: tuple[str, ...], dtype: str = "fp32", **values: Any
) -> Path:
    """A run of two steps whose matrices have ``formats`` in turn, and ranks from 1 to 4."""
    model = bpe_models.write(folder / "model", name, **values)
    empty = AutoModelForCausalLM.from_pretrained(model)
    names = [matrix.name for matrix in weight_matrices(empty) if matrix.tied_to is None]
    precision = {matrix: formats[number % len(formats)] for number, matrix in enumerate(names)}
    ranks = {matrix.name: 1 + number % 4 for number, matrix in enumerate(block_matrices(empty))}
    return bpe_models.write_run(folder / "run", model, precision, ranks, dtype)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run(tmp_path_factory.mktemp("llama"), "llama", MIXED, tie_word_embeddings=True)


def exported(folder: Path, out: Path, apart: bool) -> Rebuilt:
    rebuilt = rebuild(find_run(folder))
    write_export(prepare_gguf(rebuilt, Options("gguf", apart)), out)
    return rebuilt


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=IDS).logits.float()
    return found


def read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Metadata and tensors of a file, by the library's reader."""
    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    return fields, {tensor.name: tensor for tensor in reader.tensors}


@pytest.mark.parametrize("apart", [False, True])
def test_transformers_reads_the_exported_weights_from_the_file(
    llama: Path, tmp_path: Path, apart: bool
) -> None:
    rebuilt = exported(llama, tmp_path / "out", apart)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", gguf_file="model.gguf")
    audit = json.loads((tmp_path / "out/audit.json").read_text())
    if not apart:
        assert rebuilt.evaluate(loaded)["loss"] == pytest.approx(audit["after"]["loss"], abs=1e-5)
        return
    for name in rebuilt.applied:
        if name == "lm_head":
            continue
        row, stored_OI = audit["matrices"][name], rebuilt.stored_and_adapted(name)[0]
        distance = (loaded.get_submodule(name).weight - stored_OI).norm() / stored_OI.norm()
        assert distance < (4e-4 if row["kept"] else 0.3), (name, row)


def test_planned_bytes_are_the_bytes_of_the_tensors_if_the_types_hold_the_formats(tmp_path: Path) -> None:
    folder = finished_run(tmp_path, "llama", HELD, tie_word_embeddings=True)
    rebuilt = exported(folder, tmp_path / "out", apart=True)
    audit = json.loads((tmp_path / "out/audit.json").read_text())
    adapter = sum(tensor.n_bytes for tensor in read(tmp_path / "out/adapter.gguf")[1].values())
    buffers = sum(buffer.numel() * 4 for name, buffer in rebuilt.inner.named_buffers() if "inv_freq" in name)
    assert audit["weight_bytes"] - adapter == audit["planned_bytes"] - buffers
    assert audit["replaced"] == [] and all(row["kept"] for row in audit["matrices"].values())
    assert audit["added_loss"] == pytest.approx(0, abs=1e-4)
    assert adapter == 2 * sum(part.down_RI.numel() + part.up_OR.numel() for part in parts(rebuilt).values())


def test_bytes_of_biases_beyond_the_plan_are_stated(tmp_path: Path, capsys: Any) -> None:
    """Runs in 16 bits keep biases in 16 bits; llama.cpp requires F32."""
    values = {"tie_word_embeddings": True, "use_sliding_window": False}
    folder = finished_run(tmp_path, "qwen2", HELD, "bf16", **values)
    out = tmp_path / "out"
    assert main(["export", str(folder), "--to", "gguf", "--lora", "--out", str(out), "--force"]) == 0
    rebuilt, audit = rebuild(find_run(folder)), json.loads((out / "audit.json").read_text())
    biases = sum(one.numel() for name, one in rebuilt.inner.named_parameters() if name.endswith(".bias"))
    buffers = sum(buffer.nbytes for name, buffer in rebuilt.inner.named_buffers() if "inv_freq" in name)
    base = audit["weight_bytes"] - audit["adapter_bytes"]
    assert biases and base == audit["planned_bytes"] - buffers + 2 * biases
    (note,) = (note for note in audit["notes"] if "vectors" in note)
    assert note.startswith(f"{2 * biases:,} bytes more than planned")
    # F16 factors, as planned; base and adapter have a plan each.
    adapter = f"{audit['adapter_bytes']:,} in the adapter (planned: {audit['adapter_bytes']:,})"
    expected = f"bytes: {base:,} in the base (planned: {audit['planned_bytes']:,}), {adapter} and"
    assert expected in capsys.readouterr().out


def parts(rebuilt: Rebuilt) -> dict[str, Any]:
    return rebuilt.adapter.parts


def test_the_adapter_file_has_a_rank_for_every_tensor_and_the_product_of_the_run(
    llama: Path, tmp_path: Path
) -> None:
    rebuilt = exported(llama, tmp_path / "out", apart=True)
    fields, tensors = read(tmp_path / "out/adapter.gguf")
    assert (fields["general.type"], fields["adapter.type"]) == ("adapter", "lora")
    alpha = fields["adapter.lora.alpha"]
    ranks = set()
    for name, part in parts(rebuilt).items():
        layer, leaf = name.split(".")[2], name.split(".")[-1]
        own = {"o_proj": "attn_output", "v_proj": "attn_v", "gate_proj": "ffn_gate", "down_proj": "ffn_down"}
        if leaf not in own:
            continue
        down_RI, up_OR = (
            torch.tensor(np.array(tensors[f"blk.{layer}.{own[leaf]}.weight.lora_{side}"].data)).float()
            for side in "ab"
        )
        ranks.add(len(down_RI))
        product_OI = alpha / len(down_RI) * (up_OR @ down_RI)
        assert torch.allclose(product_OI, part.product(), atol=1e-6)
    assert len(ranks) > 1


def test_other_formats_get_the_nearest_type_and_are_counted(llama: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out"
    arguments = ["export", str(llama), "--to", "gguf", "--out", str(out), "--force"]
    assert main([*arguments, "--json"]) == 0
    audit = json.loads(capsys.readouterr().out)
    stored = {(row["planned"], row["stored"]) for row in audit["replaced"]}
    assert stored == {("nf4", "Q4_1"), ("int6-g32", "Q5_1"), ("int3-g32", "Q4_0")}
    _, tensors = read(out / "model.gguf")
    for name, row in audit["matrices"].items():
        if name.endswith("mlp.up_proj"):
            assert tensors[f"blk.{name.split('.')[2]}.ffn_up.weight"].tensor_type.name == row["stored"]
    headers = sum(audit["files"].values()) - audit["weight_bytes"]
    assert 0 < headers < 30_000


def test_metadata_describes_the_model(llama: Path, tmp_path: Path) -> None:
    rebuilt = exported(llama, tmp_path / "out", apart=False)
    fields, _ = read(tmp_path / "out/model.gguf")
    config = rebuilt.inner.config
    assert fields["general.architecture"] == "llama"
    assert fields["llama.block_count"] == config.num_hidden_layers
    assert fields["llama.attention.head_count_kv"] == config.num_key_value_heads
    assert fields["llama.rope.freq_base"] == config.rope_parameters["rope_theta"]
    assert fields["tokenizer.ggml.pre"] == "gpt-2"
    loaded = AutoTokenizer.from_pretrained(tmp_path / "out", gguf_file="model.gguf")
    text = "the film is lovely, 1990 films ."
    assert loaded(text)["input_ids"] == rebuilt.tokenizer(text)["input_ids"]


@pytest.mark.parametrize("name", ["gpt2", "qwen2", "qwen3"])
def test_every_architecture_is_read_back_with_equal_logits(name: str, tmp_path: Path) -> None:
    """With the adapter folded into 16-bit matrices; biases, fused and transposed matrices included."""
    values = {} if name == "gpt2" else {"tie_word_embeddings": True}
    values |= {"use_sliding_window": False} if name == "qwen2" else {}
    folder = finished_run(tmp_path, name, ("bf16", "int8"), **values)
    rebuilt = rebuild(find_run(folder))
    prepared = prepare_gguf(rebuilt, Options("gguf", quantizer="rtn"))
    write_export(prepared, tmp_path / "out")
    # transformers does not read every size from the file of every architecture.
    loaded = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", gguf_file="model.gguf", config=rebuilt.inner.config
    )
    assert torch.allclose(logits(loaded), logits(rebuilt.model), atol=0.05)
    assert rebuilt.evaluate(loaded)["loss"] == pytest.approx(prepared.audit.after["loss"], abs=1e-5)


def test_a_quantizer_folds_the_adapter_with_less_divergence_than_rounding(
    llama: Path, tmp_path: Path
) -> None:
    """Random weights have no loss to lose, so outputs are compared with those of the adapted model."""
    distances, audits = {}, {}
    for quantizer in ("rtn", "gptq"):
        rebuilt = rebuild(find_run(llama))
        expected = logits(rebuilt.model)
        prepared = prepare_gguf(rebuilt, Options("gguf", quantizer=quantizer))
        write_export(prepared, tmp_path / quantizer)
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / quantizer, gguf_file="model.gguf")
        distances[quantizer] = float((logits(loaded) - expected).norm() / expected.norm())
        audits[quantizer] = prepared.audit
    assert distances["gptq"] < 0.9 * distances["rtn"]
    assert audits["gptq"].rounded == pytest.approx(audits["rtn"].after, rel=1e-6)
    assert audits["rtn"].rounded == {}
    assert audits["gptq"].weight_bytes == audits["rtn"].weight_bytes
    changed = {
        row.stored for name, row in audits["gptq"].matrices.items() if row != audits["rtn"].matrices[name]
    }
    assert changed >= {"Q4_0", "Q4_1", "Q5_1", "Q8_0"}


def test_types_without_choosable_scales_are_named(tmp_path: Path) -> None:
    folder = finished_run(tmp_path, "llama", ("int3-g32", "int4-g32"), hidden_size=256, intermediate_size=256)
    prepared = prepare_gguf(rebuild(find_run(folder)), Options("gguf"))
    assert any(
        "rounded to the nearest code, not by gptq: their types (Q3_K)" in note for note in prepared.notes
    )
