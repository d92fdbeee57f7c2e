"""A merged model computes what its run computed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from bitrank.export.finished_run import find_run
from bitrank.export.merge import merge_into_16bit
from bitrank.export.prepared import Options, write_export
from bitrank.export.rebuild import rebuild
from bitrank.export.registry import EXPORTS
from bitrank.run.record import Record
from bitrank.run.train_run import execute
from bitrank.spec.make_spec import make_spec
from bitrank.spec.profiles import find_profile
from bitrank.spec.run_spec import write_spec
from bitrank_trainer import ALONE
from finished_runs import train
from small_models import write


def test_16_bit_matrices_of_the_run_are_merged_without_change(tmp_path: Path) -> None:
    """From a file in fp32, by a run that computes in fp32: the only rounding is that of the run."""
    model, folder = write(tmp_path / "model", "llama"), tmp_path / "run"
    folder.mkdir()
    given = {"model": str(model), "device": "cpu", "dtype": "fp32", "steps": 1}
    spec = make_spec(find_profile("smoke"), "B-Q4", "toy_articles", given)
    write_spec(spec, folder / "spec.json")
    execute(spec, folder, Record(folder, ALONE), ALONE)
    rebuilt = rebuild(find_run(folder))
    merged, _ = merge_into_16bit(rebuilt)
    assert rebuilt.evaluate(merged)["loss"] == pytest.approx(rebuilt.metrics["loss"], abs=1e-6)
    table = merged.get_input_embeddings().weight
    assert table.dtype == torch.float32
    assert torch.equal(table, table.bfloat16().float())


@pytest.mark.parametrize("target", ["merged", "quantized"])
def test_config_names_the_class_of_the_exported_model(tmp_path: Path, target: str) -> None:
    names = [f"bert.encoder.layer.{layer}.output.dense" for layer in range(2)]
    plan: dict[str, object] = {"precision": dict.fromkeys(names, "int4-g32"), "ranks": {names[0]: 2}}
    run = find_run(train(tmp_path, write(tmp_path / "model", "bert"), plan, "toy_sentences"))
    write_export(EXPORTS[target].prepare(rebuild(run), Options(target, False, "rtn")), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["BertForSequenceClassification"]
