"""Exports of runs whose adapters started as a part of the base, and of runs whose base has changed since."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import bitrank.run.adapter_init as adapter_init
import pytest
import torch
from bitrank.cli.main import main
from bitrank.export.finished_run import find_run
from bitrank.export.merge import merge_into_16bit
from bitrank.export.rebuild import rebuild
from bitrank.models.locate import locate
from bitrank.run.record import Record
from bitrank.run.train_run import execute
from bitrank.sensitivity.input_moments import gather
from bitrank.sensitivity.start_data import gather_start_data
from bitrank.spec.make_spec import make_spec
from bitrank.spec.profiles import find_profile
from bitrank.spec.run_spec import write_spec
from bitrank_trainer import ALONE
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

SPLIT = ["PiSSA-Q4", "CorDA-Q4", "LoRA-GA-Q4"]


def trained(folder: Path, arm: str, **fields: Any) -> Path:
    """Train ``arm`` for a few steps; its data of the start are gathered in this process, which is cheaper."""
    given = {"dtype": "fp32", "fused": False, "steps": 4, "tested": False, **fields}
    spec = make_spec(find_profile("smoke"), arm, "toy_articles", given)
    if spec.init in ("corda", "qera"):
        gather(spec)
    if spec.init in ("lora-ga", "eva", "gora"):
        gather_start_data(spec)
    folder.mkdir()
    write_spec(spec, folder / "spec.json")
    execute(spec, folder, Record(folder, ALONE), ALONE)
    return folder


def run_loss(folder: Path) -> float:
    """The validation loss of the adapter that the run saved."""
    best = json.loads((folder / "result.json").read_text())["train/best_step"]
    lines = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    found = [e["metrics"]["val/loss"] for e in lines if e["event"] == "validation" and e["step"] == best]
    return float(found[-1])


def base() -> Any:
    return AutoModelForCausalLM.from_pretrained(locate("tiny-llama"), dtype=torch.float32)


@pytest.mark.parametrize("arm", SPLIT)
def test_the_adapter_without_its_run_is_refused(tmp_path: Path, arm: str, capsys) -> None:
    run = trained(tmp_path / "run", arm)
    (run / "adapter").rename(tmp_path / "alone")
    command = ["export", str(tmp_path / "alone"), "--model", "tiny-llama", "--task", "toy_articles"]
    assert main([*command, "--to", "merged", "--out", str(tmp_path / "out")]) == 2
    assert "started as a part of its base, which its run stores without that part" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("arm", SPLIT)
def test_the_peft_export_adds_what_training_changed_to_the_unquantized_base(tmp_path: Path, arm: str) -> None:
    """W − s B₀ A₀ + s B A is the merged model but for the error of the format."""
    run, out = trained(tmp_path / "run", arm), tmp_path / "out"
    assert main(["export", str(run), "--to", "peft", "--out", str(out), "--force"]) == 0
    rebuilt = rebuild(find_run(run))
    assert rebuilt.metrics["loss"] == pytest.approx(run_loss(run), abs=2e-5) and not rebuilt.notes
    loaded = PeftModel.from_pretrained(base(), str(out))
    audit = json.loads((out / "audit.json").read_text())
    assert rebuilt.evaluate(loaded)["loss"] == pytest.approx(audit["after"]["loss"], abs=1e-5)
    assert any("twice the rank" in note for note in audit["notes"])
    assert audit["weight_bytes"] == pytest.approx(audit["files"]["adapter_model.safetensors"], rel=0.1)
    plain, merged = loaded.merge_and_unload().state_dict(), merge_into_16bit(rebuilt)[0].state_dict()
    for name, part in rebuilt.taken.items():
        whole_OI, first_OI = base().get_submodule(name).weight, part.up_OR @ part.down_RI
        update_OI = rebuilt.adapter.parts[name].product()
        exact_OI = whole_OI - first_OI + update_OI
        assert torch.allclose(plain[f"{name}.weight"], exact_OI, atol=1e-5)
        error = (merged[f"{name}.weight"] - exact_OI).norm() / (whole_OI - first_OI).norm()
        assert error < 0.13  # NF4 of the rest
        assert first_OI.norm() > 0.05 * whole_OI.norm()


def test_an_export_over_another_base_than_the_runs_says_so(tmp_path: Path, monkeypatch, capsys) -> None:
    run, real = trained(tmp_path / "run", "LoRA-GA-Q4"), adapter_init.start_data
    gradients: dict[str, Tensor] = {}

    class Changed:
        def __init__(self, spec: Any) -> None:
            self._data = real(spec)

        def gradient(self, name: str) -> Tensor:
            source = torch.Generator().manual_seed(len(gradients))
            gradients[name] = torch.randn(self._data.gradient(name).shape, generator=source)
            return gradients[name]

    monkeypatch.setattr(adapter_init, "start_data", Changed)
    out = tmp_path / "out"
    assert main(["export", str(run), "--to", "merged", "--out", str(out), "--force"]) == 0
    (note,) = json.loads((out / "audit.json").read_text())["notes"]
    assert f"its run had {run_loss(run):.4f} at step" in note and "repeat the run with --force" in note
    assert "note: the rebuilt model has a validation loss of" in capsys.readouterr().out


def test_an_export_names_another_dtype_than_the_runs(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("bitrank.process.compute.choose_dtype", lambda *_: "fp32")
    run = trained(tmp_path / "run", "B-Q4", dtype="auto")
    assert not rebuild(find_run(run)).notes
    monkeypatch.setattr("bitrank.process.compute.choose_dtype", lambda *_: "bf16")
    (note, *_) = rebuild(find_run(run)).notes
    assert "the run computed in float32 and this machine in bfloat16" in note


@pytest.mark.parametrize("arm", ["EVA-Q4", "GoRA-Q4", "QERA-Q4", "LQ-LoRA-Q4"])
def test_a_start_that_keeps_the_base_needs_no_data_in_an_export(
    tmp_path: Path, arm: str, monkeypatch
) -> None:
    run = trained(tmp_path / "run", arm)

    def fail(*_: Any) -> Any:
        raise AssertionError("the base does not depend on these data")

    for name in ("start_data", "second_moments", "fisher_weights"):
        monkeypatch.setattr(adapter_init, name, fail)
    rebuilt = rebuild(find_run(run))
    assert rebuilt.metrics["loss"] == pytest.approx(run_loss(run), abs=2e-5) and not rebuilt.notes
