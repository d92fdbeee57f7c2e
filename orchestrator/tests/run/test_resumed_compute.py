"""A run that continues in another dtype than it began says so; one that continues in the same does not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bitrank.run.record import Record
from bitrank.run.train_run import execute
from bitrank.spec.make_spec import make_spec
from bitrank.spec.profiles import find_profile
from bitrank.spec.run_spec import write_spec
from bitrank_trainer import ALONE


class Stopped(Exception):
    pass


class Stopping(Record):
    """A record of an attempt that ends after its first checkpoint."""

    def emit(self, event) -> None:
        super().emit(event)
        if event["event"] == "checkpoint":
            raise Stopped


def notices_of(folder: Path) -> list[str]:
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return [event["message"] for event in events if "changed_compute" in event.get("tags", {})]


@pytest.mark.parametrize(("later", "count"), [("fp32", 0), ("bf16", 1)])
def test_a_run_that_continues_in_another_dtype_has_a_notice(
    tmp_path: Path, monkeypatch, later: str, count: int
) -> None:
    given = {"dtype": "auto", "device": "cpu", "fused": False, "steps": 4, "tested": False}
    spec = make_spec(find_profile("smoke"), "B-Q4", "toy_articles", {**given, "checkpoint_every": 2})
    write_spec(spec, tmp_path / "spec.json")
    monkeypatch.setattr("bitrank.process.compute.choose_dtype", lambda *_: "fp32")
    with pytest.raises(Stopped):
        execute(spec, tmp_path, Stopping(tmp_path, ALONE), ALONE)
    assert not notices_of(tmp_path)
    monkeypatch.setattr("bitrank.process.compute.choose_dtype", lambda *_: later)
    execute(spec, tmp_path, Record(tmp_path, ALONE), ALONE)
    found = notices_of(tmp_path)
    assert len(found) == count
    if count:
        assert "in float32 on cpu up to step 2, and continues in bfloat16 on cpu" in found[0]
