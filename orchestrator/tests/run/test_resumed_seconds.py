"""The seconds of a resumed run are those of all its processes."""

from __future__ import annotations

import json
from pathlib import Path

from bitrank.run.record import Record
from bitrank_trainer import ALONE


def seconds_of(folder: Path) -> list[float]:
    lines = (folder / "events.jsonl").read_text().splitlines()
    return [json.loads(line)["live"]["total_s"] for line in lines]


def test_seconds_of_an_interrupted_attempt_are_added_to_those_of_the_next(tmp_path: Path) -> None:
    Record(tmp_path, ALONE).phase("training")
    (first,) = seconds_of(tmp_path)
    event = {"event": "phase", "phase": "training", "time_ms": 0, "live": {"total_s": first + 1000}}
    with (tmp_path / "events.jsonl").open("a") as events:
        events.write(json.dumps(event) + "\n")
    Record(tmp_path, ALONE).phase("training")
    *_, last = seconds_of(tmp_path)
    # This process has run for `first` seconds or more, and counts for both records.
    assert first + 1000 + first <= last < first + 1000 + first + 600


def test_events_of_earlier_versions_without_seconds_count_nothing(tmp_path: Path) -> None:
    event = {
        "event": "phase",
        "phase": "training",
        "time_ms": 0,
        "live": {"peak_mib": 5.0, "device_mib": 0.0},
    }
    (tmp_path / "events.jsonl").write_text(json.dumps(event) + "\n")
    record = Record(tmp_path, ALONE)
    record.phase("training")
    assert (
        0 < json.loads((tmp_path / "events.jsonl").read_text().splitlines()[-1])["live"]["total_s"] < 100_000
    )
