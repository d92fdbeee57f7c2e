"""A run reports the quality of the adapter that it stored: bf16 numbers, which stock PEFT loads."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from bitrank.models.load import open_model
from bitrank.process.compute import Compute, objective_for, scale_of
from bitrank.process.events import read_events
from bitrank.run.data import load_data
from bitrank.run.plans import make_plans, store_base
from bitrank.run.record import Record
from bitrank.run.train_run import execute
from bitrank.spec.configs import find_config
from bitrank.spec.make_spec import make_spec
from bitrank.spec.profiles import PROFILES
from bitrank.spec.run_spec import RunSpec
from bitrank_adapters import ResidualStart, adapted
from bitrank_trainer import ALONE
from peft import PeftModel
from safetensors.torch import load_file

ARMS = {
    "B-FP": {"rank": 4},
    "B-Ada": {"init_r": 6, "target_r": 2},
    "Joint-1": {"init_r": 6, "target_r": 2, "shrink": True},
}


def run(folder: Path, config: str, task: str, **changes: Any) -> RunSpec:
    settings = {
        "steps": 12,
        "epochs": None,
        "learning_rate": 3e-2,
        "dtype": "fp32",
        "eval_every": 6,
        **changes,
    }
    settings |= {"test_windows": 1} if task == "toy_articles" else {}
    spec = make_spec(PROFILES["smoke"], config, task, settings)
    folder.mkdir(exist_ok=True)
    execute(spec, folder, Record(folder, ALONE), ALONE)
    return spec


@pytest.mark.parametrize(
    ("config", "task"),
    [
        *product(ARMS, ("toy_sentences", "toy_articles")),
        ("B-FP", "toy_questions"),
        ("B-FP", "toy_facts"),
        ("B-Ada", "toy_summaries"),
    ],
)
def test_the_stored_adapter_has_the_reported_bytes_and_quality(
    config: str, task: str, tmp_path: Path
) -> None:
    spec = run(tmp_path, config, task, **ARMS[config])
    result = json.loads((tmp_path / "result.json").read_text())
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    nbytes = sum(tensor.numel() * 2 for tensor in tensors.values())
    assert round(result["lora/mib"] * 2**20) == nbytes
    data = load_data(spec)
    loaded = open_model(replace(spec, fused=False), data.task.classes, "cpu", torch.float32)
    formats = make_plans(find_config(config), loaded).formats
    store_base(spec, loaded, formats, ResidualStart({}), "cpu", torch.float32)
    stock = PeftModel.from_pretrained(loaded.model, str(tmp_path / "adapter"))
    found = data.evaluate(stock, data.test, objective_for(spec.kind, fused=False), "cpu")
    assert found.metrics["loss"] == pytest.approx(result["eval/loss"], abs=2e-5)
    validated = data.evaluate(stock, data.validation, objective_for(spec.kind, fused=False), "cpu")
    events = read_events(tmp_path / "events.jsonl")
    reported = {e["step"]: e["metrics"]["val/loss"] for e in events if e["event"] == "validation"}
    assert validated.metrics["loss"] == pytest.approx(reported[result["train/best_step"]], abs=2e-5)


def test_every_rank_has_the_scale_of_the_policy(tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    names = {f"model.layers.{n}.mlp.up_proj": rank for n, rank in enumerate((2, 0, 12))}
    plan.write_text(json.dumps({"precision": {}, "ranks": names}))
    spec = run(tmp_path / "run", "", "toy_articles", plan=str(plan), scale_policy="rslora", adapter_scale=1.5)
    assert Compute.of(spec).dtype == torch.float32 and scale_of(spec).policy == "rslora"
    loaded = open_model(spec, 2, "cpu", torch.float32)
    loaded.fill_rest()
    stock = PeftModel.from_pretrained(loaded.model, str(tmp_path / "run" / "adapter"))
    scales = {name: layer.scaling["default"] for name, layer in adapted(stock)}
    assert scales == pytest.approx({name: 1.5 * (8 / rank) ** 0.5 for name, rank in names.items() if rank})
    ranks = json.loads((tmp_path / "run" / "ranks.json").read_text())["final"]
    assert ranks == {name: rank for name, rank in names.items() if rank}
