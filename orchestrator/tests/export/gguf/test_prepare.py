"""GGUF files hold the weights of a run, in the planned bytes where the types hold the formats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import bpe_models
import gguf
import pytest
import torch
from bitrank.export.finished_run import find_run
from bitrank.export.gguf.prepare import prepare_gguf
from bitrank.export.prepared import Options, write_export
from bitrank.export.rebuild import Rebuilt, rebuild
from bitrank_quant import block_matrices, weight_matrices
from transformers import AutoModelForCausalLM

# Types of GGUF hold these in the planned bytes; the other formats below need another type.
HELD = ("int4-g32", "int5-g32", "bf16")
MIXED = (*HELD, "int8", "nf4", "int6-g32", "int3-g32")
IDS = torch.randint(2, 290, (2, 12), generator=torch.Generator().manual_seed(0))


def finished_run(folder: Path, name: str, formats: tuple[str, ...], **values: Any) -> Path:
    """A run of two steps whose matrices have ``formats`` in turn, and ranks from 1 to 4."""
    model = bpe_models.write(folder / "model", name, **values)
    empty = AutoModelForCausalLM.from_pretrained(model)
    names = [matrix.name for matrix in weight_matrices(empty) if matrix.tied_to is None]
    precision = {matrix: formats[number % len(formats)] for number, matrix in enumerate(names)}
    ranks = {matrix.name: 1 + number % 4 for number, matrix in enumerate(block_matrices(empty))}
    return bpe_models.write_run(folder / "run", model, precision, ranks)


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
        row, stored_OI = audit["matrices"][name], rebuilt.wanted(name)[0]
        distance = (loaded.get_submodule(name).weight - stored_OI).norm() / stored_OI.norm()
        assert distance < (4e-4 if row["kept"] else 0.3), (name, row)
