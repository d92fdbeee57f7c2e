"""Figures of earlier attempts of a run, read from its folder, so that a resumed run continues them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from bitrank.process.events import read_events


def read_figures(path: Path) -> dict[str, float] | None:
    """Read the metrics that an earlier attempt wrote to ``path``; None when they are missing or damaged."""
    try:
        stored = json.loads(path.read_text())
        return dict(stored["metrics"]) if stored["sha256"] == digest(stored["metrics"]) else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def digest(metrics: Mapping[str, float]) -> str:
    return hashlib.sha256(json.dumps(metrics).encode()).hexdigest()


def past_ranks(path: Path) -> dict[int, dict[str, int]]:
    return {event["step"]: event["ranks"] for event in read_events(path) if event["event"] == "ranks"}


def past_checkpoints(path: Path) -> set[int]:
    return {event["step"] for event in read_events(path) if event["event"] == "checkpoint"}


def past_compute(path: Path) -> str | None:
    """Dtype and device of the last earlier attempt, such as ``bfloat16 on cpu``; None without any."""
    tags = [event["tags"] for event in read_events(path) if event["event"] == "machine" and "tags" in event]
    return f"{tags[-1].get('dtype')} on {tags[-1].get('device')}" if tags else None


def past_peak(path: Path, key: str) -> float:
    """The largest value that the events of earlier attempts have of ``key``; 0 without any."""
    peaks = [event["live"].get(key, 0.0) for event in read_events(path) if "live" in event]
    return float(np.max(peaks, initial=0.0))
