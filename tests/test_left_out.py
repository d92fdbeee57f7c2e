"""Tensors that no plan can address (experts): in a run, in a forecast and in a plan."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import architectures
import pytest
import torch
from bitrank.cli.main import main
from bitrank.forecast.model_shapes import model_shapes
from bitrank.forecast.stored_size import Storage, base_bytes
from bitrank.models.load import open_model
from bitrank.models.meta_model import meta_model
from bitrank.process.events import read_events
from bitrank.run.adapter_init import choose_init
from bitrank.run.notices import left_out_message, report_mps_fallbacks
from bitrank.run.plans import make_plans, store_base
from bitrank.run.record import Record
from bitrank.spec.configs import find_config
from bitrank.spec.make_spec import make_spec
from bitrank.spec.profiles import find_profile
from bitrank.spec.tiny_models import build_tiny
from bitrank_quant import UnplannedTensor, stored_bytes, weight_matrices
from bitrank_trainer import ALONE, OwnAttention

EXPERTS = 2 * 4 * (256 * 64 + 64 * 128)  # in two blocks; their routers are 4 × 64 each
ROUTERS = 2 * 4 * 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture-of-experts model with the tokenizer of the tiny models."""
    made = tmp_path_factory.mktemp("mixtral")
    build_tiny("tiny-llama", made)
    (made / "model.safetensors").unlink()
    architectures.build("mixtral").save_pretrained(made)
    return made


def spec_of(folder: Path, config: str) -> Any:
    return make_spec(find_profile("smoke"), config, "toy_articles", {"model": str(folder), "dtype": "fp32"})


@pytest.mark.parametrize(("config", "bits"), [("B-FP", 16.0), ("B-Q4", 15.0)])
def test_experts_are_stored_in_16_bits_and_reported(folder: Path, config: str, bits: float) -> None:
    spec = spec_of(folder, config)
    loaded = open_model(spec, 0, "cpu", torch.float32)
    plans = make_plans(find_config(config), loaded)
    assert sum(one.numbers for one in plans.left) == EXPERTS + ROUTERS
    assert plans.left[0].reason == "3 dimensions, in a MixtralExperts"
    store_base(spec, loaded, plans.formats, choose_init(spec, plans.ranks), "cpu", torch.float32)
    held = stored_bytes(loaded.model).total
    assert held * 8 / loaded.parameters == pytest.approx(bits, abs=0.3)
    bare = meta_model(str(folder), spec.kind, 2, torch.float32)
    storage = Storage("auto", "cpu", torch.float32)
    assert base_bytes(bare, plans.formats, weight_matrices(bare), storage) == held
    assert list(model_shapes(str(folder), spec.kind, dtype=torch.float32).left) == plans.left


def test_run_records_and_reports_unplanned_tensors(folder: Path, tmp_path: Path) -> None:
    loaded = open_model(spec_of(folder, "B-FP"), 0, "cpu", torch.float32)
    plans = make_plans(find_config("B-FP"), loaded)
    record = Record(tmp_path, ALONE)
    record.plan(plans.formats, plans.ranks, plans.quantizable, plans.left, loaded.parameters)
    plan = json.loads((tmp_path / "plan.json").read_text())
    left, share = plan["left_in_16_bits"], (EXPERTS + ROUTERS) / loaded.parameters
    assert plan["left_in_16_bits_share"] == pytest.approx(share) == pytest.approx(0.866, abs=5e-4)
    assert record._result["model/left_percent"] == pytest.approx(100 * share)
    assert (
        list(left) == [one.name for one in plans.left]
        and left[plans.left[0].name]["numbers"] == plans.left[0].numbers
    )
    (notice,) = [event for event in read_events(tmp_path / "events.jsonl") if event["event"] == "notice"]
    assert notice["message"].startswith("86.6% of the weights stay in 16 bits")


def test_plan_output_lists_unplanned_tensors(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["plan", "--model", str(folder / "config.json"), "--budget", "15.9bits"]
    assert main([*arguments, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    left = plan["left_in_16_bits"]
    assert plan["left_in_16_bits_share"] == pytest.approx(0.866, abs=5e-4)
    assert sum(one["numbers"] for one in left.values()) == EXPERTS + ROUTERS
    assert main(arguments) == 0
    assert "86.6% of the weights stay in 16 bits" in " ".join(capsys.readouterr().out.split())


def test_notice_groups_unplanned_tensors_by_kind_and_states_their_share() -> None:
    left = [
        UnplannedTensor(f"layers.{n}.experts.{part}", 300, "3 dimensions")
        for n in range(9)
        for part in ("up", "down")
    ]
    assert left_out_message(left, 6000) == (
        "90.0% of the weights stay in 16 bits under every plan and get no adapter: "
        "layers.*.experts.up (3 dimensions), layers.*.experts.down (3 dimensions)"
    )
    assert left_out_message([], 6000) is None
    many = [UnplannedTensor(f"part{n}", 1, "x") for n in range(5)]
    assert str(left_out_message(many, 10)).endswith("part2 (x) and 2 more")


def test_custom_attention_becomes_a_notice() -> None:
    events: list[Any] = []
    with warnings.catch_warnings(), report_mps_fallbacks(events.append):
        warnings.simplefilter("always")
        warnings.warn("T5Attention attends with the keyword 'position_bias'", OwnAttention, stacklevel=1)
    assert [(one["event"], one["message"]) for one in events] == [
        ("notice", "T5Attention attends with the keyword 'position_bias'")
    ]
