"""A run in fp8 and in stand-ins trains, and is not exported as if it stored few bits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bitrank.errors import UserError
from bitrank.export.finished_run import find_run
from finished_runs import llama_plan, train
from small_models import write

FORMATS = ("fp8", "noise16-int3-g64")


def test_a_run_in_stand_ins_trains_and_is_not_exported(tmp_path: Path) -> None:
    plan = llama_plan(lambda number: FORMATS[number % 2], "bf16", lambda number: 4)
    run = train(tmp_path, write(tmp_path / "model", "llama"), plan)
    result = json.loads((run / "result.json").read_text())
    stored = json.loads((run / "plan.json").read_text())
    assert {entry["format"] for entry in stored["applied"].values()} == {*FORMATS, "bf16"}
    assert result["eval/loss"] < 10
    with pytest.raises(UserError, match="trained with noise16-int3-g64"):
        find_run(run)
