"""Saved views: each task has a leaderboard sorted by its quality, with three significant digits."""

from __future__ import annotations

import base64
import json
import re
import zlib
from pathlib import Path
from typing import Any

import pytest
from bitrank.process.run_folder import seal
from bitrank.spec.make_spec import make_spec
from bitrank.spec.profiles import PROFILES
from bitrank.spec.task_kinds import task_kind
from bitrank.tracking.mlflow_tracker import Tracker
from bitrank.tracking.mlflow_views import saved_task_views, task_views, three_digits
from bitrank.tracking.store import open_store


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.84675, "0.847"),
        (21.374, "21.4"),
        (1234.5, "1230"),
        (0.9996, "1.000"),
        (0.00123456, "0.00123"),
        (0.0, "0.0"),
    ],
)
def test_three_significant_digits(value: float, text: str) -> None:
    assert three_digits(value) == text


def _state(tags: dict[str, str], key: str) -> dict[str, Any]:
    packed = json.loads(tags[f"mlflow.sharedViewState.{key}"])["state"].removeprefix("deflate;")
    return dict(json.loads(zlib.decompress(base64.b64decode(packed))))


def test_every_task_has_views_of_its_own(tmp_path: Path) -> None:
    """Names in other alphabets, and long ones, have the same characters that a key may have."""
    tasks = ["отзывы", "бланки", "кинофильмы", "reviews", "a" * 60, "a" * 61]
    metric = task_kind("classification").metric
    keys = [view.key for task in tasks for view in task_views(task, metric)]
    assert len(set(keys)) == 2 * len(tasks)
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]{1,80}", key) for key in keys)
    assert keys[6:10] == ["task-reviews", "charts-reviews", f"task-{'a' * 60}", f"charts-{'a' * 60}"]


def test_each_task_has_a_leaderboard_sorted_by_its_quality(tmp_path: Path) -> None:
    store = str(tmp_path / "runs")
    tracker = Tracker(open_store(store), store, "smoke")
    for task, result in {
        "toy_sentences": {"eval/acc": 0.84675},
        "toy_articles": {"eval/ppl": 21.3741},
    }.items():
        log = tracker.open(make_spec(PROFILES["smoke"], "B-FP", task), None)
        folder = tmp_path / task
        folder.mkdir()
        seal(folder, {**result, "model/mib": 0.0786})
        log.close(folder, "FINISHED", {})
        tags = tracker.client.get_run(log.run_id).data.tags
        assert tags["quality"] == ("0.847" if task == "toy_sentences" else "21.4")
        assert tags["stored MiB"] == "0.0786"
    tags = tracker.client.get_experiment(tracker.experiment_id).tags
    sentences, articles = _state(tags, "task-toy_sentences"), _state(tags, "task-toy_articles")
    assert (sentences["orderByKey"], sentences["orderByAsc"]) == ("metrics.`eval/acc`", False)
    assert (articles["orderByKey"], articles["orderByAsc"]) == ("metrics.`eval/ppl`", True)
    assert articles["searchFilter"] == "tags.task = 'toy_articles'"
    assert "tags.`quality`" in articles["selectedColumns"]
    assert [(view.key, view.chart) for view in saved_task_views(tags)] == [
        ("charts-toy_articles", True),
        ("charts-toy_sentences", True),
        ("task-toy_articles", False),
        ("task-toy_sentences", False),
    ]
