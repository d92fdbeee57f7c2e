"""Measured tables are shared by runs, and no run's numbers depend on which run measured them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from bitrank.run.adapter_init import fisher_weights
from bitrank.run.record import Record
from bitrank.run.train_run import execute
from bitrank.sensitivity.measure import is_measured, measure, tables_place
from bitrank.spec.make_spec import make_spec
from bitrank.spec.profiles import find_profile
from bitrank.spec.run_spec import RunSpec, write_spec
from bitrank_trainer import ALONE

LOSSES = ("zero/loss", "eval/loss")


def spec_of(seed: int, **given: Any) -> RunSpec:
    settings = {"init": "lq-lora", "device": "cpu", "steps": 2, "seed": seed, **given}
    return make_spec(find_profile("smoke"), "B-Q4", "toy_sentences", settings)


def losses(spec: RunSpec, folder: Path) -> dict[str, float]:
    folder.mkdir(parents=True)
    write_spec(spec, folder / "spec.json")
    execute(spec, folder, Record(folder, ALONE), ALONE)
    result = json.loads((folder / "result.json").read_text())
    return {key: result[key] for key in LOSSES}


def test_result_of_a_seed_does_not_depend_on_the_seed_that_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {}
    for name, seeds in (("first", (0, 1)), ("second", (1, 0))):
        monkeypatch.setenv("BITRANK_CACHE", str(tmp_path / name / "cache"))
        found[name] = {seed: losses(spec_of(seed), tmp_path / name / str(seed)) for seed in seeds}
        tables = list((tmp_path / name / "cache" / "measured").glob("tiny-*"))
        assert len(tables) == 1, "one table for both seeds"
    assert found["first"] == found["second"]
    assert found["first"][0] != found["first"][1]


def test_tables_do_not_depend_on_the_number_of_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, before = [], torch.get_num_threads()
    for threads in (1, 3):
        monkeypatch.setenv("BITRANK_CACHE", str(tmp_path / str(threads)))
        torch.set_num_threads(threads)
        found.append(measure(spec_of(0, quantizer="search")))
        assert torch.get_num_threads() == threads
    torch.set_num_threads(before)
    one, three = found
    assert one.base == three.base
    for name, by_format in one.errors.items():
        assert torch.equal(one.moments[name].gradient_K, three.moments[name].gradient_K)
        for text, errors in by_format.items():
            assert torch.equal(errors.tail_R, three.errors[name][text].tail_R)
            assert errors.output == three.errors[name][text].output


def test_tables_are_shared_by_seeds_and_not_by_dtypes() -> None:
    assert tables_place(spec_of(0)) == tables_place(spec_of(1))
    assert tables_place(spec_of(0, dtype="fp32")) != tables_place(spec_of(0, dtype="bf16"))


def test_damaged_tables_do_not_count_as_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITRANK_CACHE", str(tmp_path))
    place = tables_place(spec_of(0))
    place.mkdir(parents=True)
    (place / "tables.safetensors").write_bytes(b"half of a")
    assert not is_measured(spec_of(0))


def test_fisher_weights_are_measured_by_rounding_and_equal_those_of_every_quantizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BITRANK_CACHE", str(tmp_path))
    found = fisher_weights(spec_of(0, quantizer="gptq"))
    assert is_measured(spec_of(0)) and not is_measured(spec_of(0, quantizer="gptq"))
    planned = measure(spec_of(0, quantizer="search")).moments
    assert found.keys() == planned.keys()
    for name, (row_O, column_I) in found.items():
        assert torch.equal(row_O, planned[name].row_O)
        assert torch.equal(column_I, planned[name].column_I)
