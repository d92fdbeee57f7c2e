"""A run of L4Q leaves quantized matrices of the planned bytes and no adapter, and exports keep its codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from bitrank.errors import UserError
from bitrank.export.finished_run import check_has_adapter, find_run
from bitrank.export.merge import prepare_quantized
from bitrank.export.prepared import Options
from bitrank.export.rebuild import Rebuilt, rebuild
from bitrank.forecast.forecast import forecast
from bitrank.planning.budget import sizes_of
from bitrank.process.compute import Compute, objective_of
from bitrank.process.events import read_events
from bitrank.run.build import Built, build_model
from bitrank.run.data import load_data
from bitrank.run.record import Record
from bitrank.run.train_run import execute
from bitrank.spec.configs import find_config
from bitrank.spec.make_spec import make_spec
from bitrank.spec.profiles import PROFILES
from bitrank.spec.run_spec import RunSpec, write_spec
from bitrank_adapters import adapted
from bitrank_quant import QUANTIZERS, stored_weight
from bitrank_trainer import ALONE
from safetensors.torch import load_file

LANGUAGE, CLASSES = "toy_articles", "toy_sentences"


class Interrupted(Exception):
    """Raised in the place of a killed process."""


class Interrupting(Record):
    """A record that ends the run after the checkpoint of a step."""

    at = 0

    def emit(self, event: Any) -> None:
        super().emit(event)
        if event["event"] == "checkpoint" and event["step"] == self.at:
            raise Interrupted


def spec_of(task: str, arm: str = "L4Q-Q4", **changes: Any) -> RunSpec:
    given = {"steps": 20, "epochs": None, "learning_rate": 1e-2, "dtype": "fp32", "device": "cpu"}
    return make_spec(PROFILES["smoke"], arm, task, {**given, "eval_every": 10, **changes})


def run(folder: Path, spec: RunSpec, stop: int | None = None) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    write_spec(spec, folder / "spec.json")
    record = Record(folder, ALONE) if stop is None else Interrupting(folder, ALONE)
    Interrupting.at = stop or 0
    execute(spec, folder, record, ALONE)
    return dict(json.loads((folder / "result.json").read_text()))


def built(spec: RunSpec) -> Built:
    classes = load_data(spec).task.classes
    return build_model(spec, Compute.of(spec), find_config(spec.config), classes, 20)


@pytest.fixture(scope="module", params=(LANGUAGE, CLASSES))
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp(request.param) / "run"
    run(folder, spec_of(request.param))
    return folder


@pytest.fixture(scope="module")
def rebuilt(finished: Path) -> Rebuilt:
    return rebuild(find_run(finished))


def test_the_stored_model_has_the_quality_of_the_trained_one(finished: Path, rebuilt: Rebuilt) -> None:
    result = json.loads((finished / "result.json").read_text())
    data = rebuilt.data
    test = data.evaluate(rebuilt.model, data.test, objective_of(rebuilt.spec), "cpu").metrics
    assert test["loss"] == pytest.approx(result["eval/loss"], abs=2e-5)
    events = read_events(finished / "events.jsonl")
    reported = {e["step"]: e["metrics"]["val/loss"] for e in events if e["event"] == "validation"}
    assert rebuilt.metrics["loss"] == pytest.approx(reported[result["train/best_step"]], abs=2e-5)
    assert result["eval/loss"] != pytest.approx(result["zero/loss"], abs=1e-3)


def test_no_adapter_is_left_and_the_bytes_are_those_of_the_quantized_model(
    finished: Path, rebuilt: Rebuilt
) -> None:
    result = json.loads((finished / "result.json").read_text())
    assert adapted(rebuilt.model) == [] and result["lora/rank"] == 0
    heads = sum(t.nbytes for t in load_file(finished / "adapter" / "adapter_model.safetensors").values())
    assert round(result["lora/mib"] * 2**20) == heads
    spec, config = rebuilt.spec, find_config("L4Q-Q4")
    budget = sizes_of(spec).of_config(config)
    assert budget == round(result["model/mib"] * 2**20) + heads
    plan = json.loads((finished / "plan.json").read_text())
    shapes = [m["shape"] for m in plan["matrices"] if m["name"] in plan["ranks"]]
    numbers = sum(config.rank.trained_numbers(shape, 8) for shape in shapes)
    assert result["lora/params"] == numbers + heads // 2


@pytest.mark.slow
def test_the_forecast_has_the_bytes_and_trained_numbers_of_the_run(finished: Path, rebuilt: Rebuilt) -> None:
    spec, result = rebuilt.spec, json.loads((finished / "result.json").read_text())
    plan = json.loads((finished / "plan.json").read_text())
    predicted = forecast(spec, plan["precision"], plan["ranks"])
    assert predicted.trainable == result["lora/params"] > 0
    assert predicted.stored == round(result["model/mib"] * 2**20)


def test_exports_have_the_trained_codes(finished: Path, rebuilt: Rebuilt) -> None:
    saved = load_file(finished / "adapter" / "quantized.safetensors")
    name = next(iter(json.loads((finished / "plan.json").read_text())["ranks"]))
    kept = rebuilt.layer(name).quantized.tensors
    assert all(torch.equal(kept[part], saved[f"{name}.quantized.{part}"]) for part in kept)
    assert rebuilt.applied[name].format == "int4-g64"
    prepared = prepare_quantized(rebuild(find_run(finished)), Options("quantized"))
    assert prepared.audit.added_loss == pytest.approx(0, abs=1e-6)
    with pytest.raises(UserError, match=r"has no adapter to export; give --to quantized"):
        check_has_adapter(find_run(finished))


@pytest.mark.parametrize(
    "quantizer",
    [
        pytest.param(name, marks=[pytest.mark.slow] if one.uses_moments else [])
        for name, one in QUANTIZERS.items()
    ],
)
def test_training_starts_from_the_matrix_of_the_quantizer(quantizer: str) -> None:
    model = built(spec_of(LANGUAGE, quantizer=quantizer)).model
    latent_shares = []
    for _, layer in adapted(model):
        stored_OI = stored_weight(layer.base_layer)
        assert torch.allclose(layer.weight(), stored_OI, atol=1e-6)
        latent_shares.append(float((layer.frozen_OI != stored_OI).float().mean()))
    assert min(latent_shares) > 0.5  # most weights keep their position between the codes


@pytest.mark.parametrize(
    ("arm", "stop"),
    [("L4Q-Q4", 10), ("ARD-LoRA-Q4", 5), pytest.param("ARD-LoRA-Q4", 15, marks=pytest.mark.slow)],
)
def test_an_interrupted_run_ends_with_the_same_numbers(arm: str, stop: int, tmp_path: Path) -> None:
    spec = spec_of(LANGUAGE, arm, checkpoint_every=5)
    straight = run(tmp_path / "straight", spec)
    with pytest.raises(Interrupted):
        run(tmp_path / "resumed", spec, stop)
    resumed = run(tmp_path / "resumed", spec)
    figures = [key for key in straight if key.split("/")[0] in ("eval", "zero", "lora", "model")]
    assert {key: straight[key] for key in figures} == {key: resumed[key] for key in figures}
    for path in (tmp_path / "straight" / "adapter").glob("*.safetensors"):
        first, second = load_file(path), load_file(tmp_path / "resumed" / "adapter" / path.name)
        assert all(torch.equal(first[key], second[key]) for key in first)


def test_learned_scales_end_within_the_budget(tmp_path: Path) -> None:
    result = run(tmp_path / "run", spec_of(LANGUAGE, "ARD-LoRA-Q4", learning_rate=2e-2))
    ranks = json.loads((tmp_path / "run" / "ranks.json").read_text())["final"]
    assert sum(ranks.values()) == result["lora/rank"] <= 8 * len(ranks) and len(set(ranks.values())) > 1
    tensors = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    assert round(result["lora/mib"] * 2**20) == sum(tensor.nbytes for tensor in tensors.values())
