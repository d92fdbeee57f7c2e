"""The exported adapter loads in PEFT over the unquantized base, and its audit is about that base."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import bpe_models
import peft
import pytest
import torch
import transformers
from bitrank.cli.main import main
from bitrank.export.audit import Audit
from bitrank.export.finished_run import find_run
from bitrank.export.peft_adapter import _loading, _readme
from bitrank.export.rebuild import rebuild
from bitrank.spec.task_kinds import TASK_KINDS
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file

PARTS = ("mlp.up_proj", "mlp.gate_proj", "mlp.down_proj", "self_attn.q_proj", "self_attn.v_proj")


def test_peft_loads_the_adapter_and_computes_what_the_audit_reports(tmp_path: Path, capsys: Any) -> None:
    model, out = bpe_models.write(tmp_path / "model", "llama"), tmp_path / "out"
    names = [f"model.layers.{layer}.{part}" for layer in range(2) for part in PARTS]
    matrices = dict.fromkeys(names, "int2-g32")
    run = bpe_models.write_run(tmp_path / "run", model, matrices, dict.fromkeys(matrices, 4))
    assert main(["export", str(run), "--to", "peft", "--out", str(out), "--force"]) == 0
    loaded = AutoPeftModelForCausalLM.from_pretrained(str(out), dtype=torch.float32)
    audit = json.loads((out / "audit.json").read_text())
    rebuilt = rebuild(find_run(run))
    assert rebuilt.evaluate(loaded)["loss"] == pytest.approx(audit["after"]["loss"], abs=1e-5)
    numbers = sum(tensor.numel() for tensor in load_file(out / "adapter_model.safetensors").values())
    assert audit["weight_bytes"] == audit["adapter_bytes"] == 2 * numbers
    assert audit["planned_adapter_bytes"] == 2 * numbers
    printed = capsys.readouterr().out
    assert f"bytes: {2 * numbers:,} in the adapter (planned: {2 * numbers:,}) and " in printed
    assert "in the base" not in printed
    # The run's base has 2-bit matrices, which the base of PEFT has not.
    assert audit["after"]["loss"] != pytest.approx(audit["before"]["loss"], abs=1e-5)
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == str(model)
    card = (out / "README.md").read_text()
    assert card.startswith(f"---\nbase_model: {model}\nlibrary_name: peft\n---\n")
    assert "AutoPeftModelForCausalLM.from_pretrained" in card


def test_model_card_names_the_classes_and_uses_no_class_of_a_task_without_one() -> None:
    auto_model = "AutoModelForSequenceClassification"
    options = {"revision": "abc", "num_labels": 3}
    assert _loading("base", auto_model, True, options)[-1] == (
        'model = AutoPeftModelForSequenceClassification.from_pretrained(".", num_labels=3)'
    )
    *_, base, model = _loading("base", auto_model, False, options)
    assert base == f"base = {auto_model}.from_pretrained(\"base\", revision='abc', num_labels=3)"
    assert model == 'model = PeftModel.from_pretrained(base, ".")'


@pytest.mark.parametrize("has_task", [True, False])
@pytest.mark.parametrize("kind", TASK_KINDS)
def test_model_card_loads_the_adapter_with_classes_that_exist_for_its_kind(kind: str, has_task: bool) -> None:
    audit = Audit("peft", {"loss": 1.0}, {"loss": 1.0}, {}, planned_bytes=0, weight_bytes=0)
    auto_model = TASK_KINDS[kind].auto_model
    card = _readme("base", _loading("base", auto_model, has_task, {}), audit)
    imported = re.search(r"from peft import (\w+)", card)
    assert imported
    if imported[1] == "PeftModel":
        assert f"from transformers import {auto_model}\n" in card and hasattr(transformers, auto_model)
        assert f"base = {auto_model}.from_pretrained" in card
    else:
        assert getattr(peft, imported[1])._target_class.__name__ == auto_model
