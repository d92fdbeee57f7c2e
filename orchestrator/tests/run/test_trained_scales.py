"""Runs that train the scales of their formats: no bytes are added, and the stored scales give the metrics."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import bitrank
import pytest
import torch
from bitrank.errors import UserError
from bitrank.export.finished_run import FinishedRun, check_has_adapter, find_run
from bitrank.export.merge import prepare_quantized
from bitrank.export.prepared import Options
from bitrank.export.rebuild import rebuild
from bitrank.forecast.dry_run import unplanned_model
from bitrank.forecast.stored_size import Storage, base_bytes
from bitrank.planning.budget import sizes_of
from bitrank.process.compute import Compute
from bitrank.process.events import read_events
from bitrank.run.record import Record
from bitrank.run.train_run import execute
from bitrank.spec.configs import find_config
from bitrank.spec.make_spec import make_spec
from bitrank.spec.profiles import PROFILES
from bitrank.spec.run_spec import RunSpec, write_spec
from bitrank.spec.tiny_models import TINY
from bitrank_adapters import read_scales
from bitrank_quant import apply_precision, block_matrices, load_quantized, stored_bytes, weight_matrices
from bitrank_trainer import ALONE
from safetensors.torch import load_file

FIELDS = {"steps": 12, "learning_rate": 1e-2, "dtype": "fp32", "device": "cpu", "test_windows": 1}


def spec_of(**changes: Any) -> RunSpec:
    return make_spec(PROFILES["smoke"], "Scales-Q4", "toy_articles", {**FIELDS, **changes})


@pytest.fixture(scope="module")
def run(shared_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BITRANK_CACHE", str(shared_cache))
        folder = tmp_path_factory.mktemp("scales")
        spec = spec_of()
        write_spec(spec, folder / "spec.json")
        execute(spec, folder, Record(folder, ALONE), ALONE)
    return find_run(folder)


def figures(run: FinishedRun) -> dict[str, float]:
    return json.loads((run.adapter.parent / "result.json").read_text())


def test_training_lowers_the_loss(run: FinishedRun) -> None:
    result = figures(run)
    assert result["eval/loss"] < result["zero/loss"] - 0.1
    assert result["lora/params"] > 0


def test_the_run_has_the_bytes_of_its_plan_without_adapters(run: FinishedRun) -> None:
    result, spec = figures(run), run.spec
    assert result["lora/mib"] == result["lora/rank"] == 0
    config = find_config("Scales-Q4")
    sizes = sizes_of(spec)
    without = config.precision.assign_formats(sizes.outline.matrices)
    plain = sizes.fixed + sum(sizes.of_matrix(name, without[name], 0) for name in sizes.matrices)
    assert sizes.of_config(config) == plain
    model = unplanned_model(spec, 2, Compute.of(spec)).model
    storage = Storage("auto", "cpu", torch.float32)
    assert base_bytes(model, without, weight_matrices(model), storage) == result["model/mib"] * 2**20
    assert rebuild(run).planned_bytes == result["model/mib"] * 2**20


def test_a_rebuilt_run_has_the_reported_quality_and_new_scales_only(run: FinishedRun) -> None:
    rebuilt, scales = rebuild(run), read_scales(run.adapter)
    events = read_events(run.adapter.parent / "events.jsonl")
    reported = {e["step"]: e["metrics"]["val/loss"] for e in events if e["event"] == "validation"}
    expected = reported[figures(run)["train/best_step"]]
    assert rebuilt.metrics["loss"] == pytest.approx(expected, abs=1e-5)
    assert {tensor.dtype for tensor in scales.values()} == {torch.bfloat16}
    blocks = {m.name for m in block_matrices(rebuilt.inner)}
    assert {name.rpartition(".")[0] for name in scales} == blocks


def test_an_export_in_the_formats_of_the_run_keeps_codes_bytes_and_logits(
    run: FinishedRun, tmp_path: Path
) -> None:
    rebuilt = rebuild(run)
    before = {name: t.clone() for name, t in rebuilt.inner.state_dict().items() if "quantized" in name}
    prepared = prepare_quantized(rebuilt, Options("quantized"))
    assert prepared.audit.weight_bytes == rebuilt.planned_bytes
    assert prepared.audit.after["loss"] == prepared.audit.before["loss"]
    prepared.write(tmp_path)
    loaded = load_quantized(TINY["tiny-llama"](), tmp_path, torch.float32)
    after = loaded.state_dict()
    assert before and all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_an_adapter_alone_is_refused_because_there_is_none(run: FinishedRun) -> None:
    with pytest.raises(UserError, match=r"Scales-Q4 trained the quantized .* has no adapter to export; give"):
        check_has_adapter(run)


class Interrupted(Exception):
    pass


class Interrupting(Record):
    """A record that ends the process after the checkpoint of step 4."""

    def emit(self, event: Any) -> None:
        super().emit(event)
        if event["event"] == "checkpoint" and event["step"] == 4:
            raise Interrupted


def test_a_run_continued_from_a_checkpoint_has_the_same_numbers(run: FinishedRun, tmp_path: Path) -> None:
    spec = spec_of(checkpoint_every=4)
    with pytest.raises(Interrupted):
        execute(spec, tmp_path, Interrupting(tmp_path, ALONE), ALONE)
    execute(spec, tmp_path, Record(tmp_path, ALONE), ALONE)
    straight, continued = read_scales(run.adapter), read_scales(tmp_path / "adapter")
    assert straight.keys() == continued.keys()
    assert all(torch.equal(straight[name], continued[name]) for name in straight)
    assert load_file(tmp_path / "adapter" / "adapter_model.safetensors") == {}


def test_a_plan_with_code_books_is_refused_before_the_run(tmp_path: Path) -> None:
    plan = tmp_path / "mine.json"
    name = "model.layers.1.mlp.up_proj"
    rule = {"name": "scales-only"}
    plan.write_text(json.dumps({"precision": {name: "nf4-dq"}, "ranks": {}, "rank_rule": rule}))
    from bitrank.run.plan_check import check_plans

    with pytest.raises(UserError, match=f"the scales of {name} in nf4-dq cannot be trained"):
        check_plans([spec_of(plan=str(plan))])


def test_the_python_interface_refuses_rules_that_need_a_run() -> None:
    model = TINY["tiny-llama"]()
    apply_precision(model, {m.name: "int4-g64" for m in block_matrices(model)}, compute_dtype=torch.float32)
    size = stored_bytes(model).total
    for rule in ({"name": "scales-only"}, {"name": "qa-lora", "rank": 4, "group": 64}):
        with pytest.raises(UserError, match=f"{rule['name']} changes or converts .*; train it with"):
            bitrank.attach(model, {"ranks": {}, "rank_rule": rule})
    assert stored_bytes(model).total == size


def test_a_plan_that_leaves_an_adapted_matrix_whole_is_refused_with_a_split_start(tmp_path: Path) -> None:
    from bitrank.run.plan_check import check_plans

    names = [f"model.layers.1.mlp.{part}_proj" for part in ("up", "down")]
    plan = tmp_path / "mine.json"
    plan.write_text(json.dumps({"precision": {names[0]: "nf4-dq"}, "ranks": dict.fromkeys(names, 2)}))
    check_plans([spec_of(plan=str(plan))])
    with pytest.raises(UserError, match=f"init=pissa .* {names[1]} stays in 16 bits; give"):
        check_plans([spec_of(plan=str(plan), init="pissa")])
