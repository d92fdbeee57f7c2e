"""Prefetch for queued runs in a separate process, which ends with the first runs."""

from __future__ import annotations

import subprocess
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from bitrank.execution.options import RUN_BYTES
from bitrank.execution.prefetch import prefetch
from bitrank.spec.make_spec import make_spec
from bitrank.spec.plan_request import cached_plan, plan_place
from bitrank.spec.profiles import PROFILES
from bitrank.spec.run_spec import RunSpec

SENTENCES, ARTICLES = (
    make_spec(PROFILES["smoke"], "B-FP", task) for task in ("toy_sentences", "toy_articles")
)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BITRANK_CACHE", str(tmp_path))
    return tmp_path


def wait_for(cache: Path, pattern: str) -> None:
    deadline = time.monotonic() + 300
    while not list(cache.glob(pattern)):
        assert time.monotonic() < deadline, sorted(cache.rglob("*"))
        time.sleep(0.001)


def test_only_models_and_tokens_of_queued_runs_are_prefetched(cache: Path) -> None:
    with prefetch([SENTENCES, ARTICLES, replace(ARTICLES, seed=1)], slots=1):
        wait_for(cache, "tokens/toy_articles-*/meta.json")
    assert [path.name.rpartition("-")[0] for path in (cache / "models").glob("[!.]*")] == [ARTICLES.model]
    assert not list(cache.glob("tokens/toy_sentences-*"))


def test_errors_are_left_to_the_run_that_needs_the_asset(cache: Path) -> None:
    with prefetch([SENTENCES, replace(SENTENCES, model="./nowhere"), ARTICLES], slots=1):
        wait_for(cache, "tokens/toy_articles-*/meta.json")


def test_the_process_ends_with_the_block_and_leaves_no_unfinished_file(cache: Path) -> None:
    before = set(psutil.Process().children())
    with pytest.raises(KeyError), prefetch([SENTENCES, ARTICLES], slots=1):
        started = set(psutil.Process().children()) - before
        wait_for(cache, "*/.*.*/")  # a folder that is being filled
        raise KeyError
    assert len(started) == 1 and not any(process.is_running() for process in started)
    assert not list(cache.glob("*/.*.*/"))


def test_prefetched_specs_start_no_process(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with prefetch([SENTENCES, ARTICLES], slots=1):
        wait_for(cache, "prepared/*")
    monkeypatch.setattr(subprocess, "Popen", None)
    with prefetch([SENTENCES, ARTICLES], slots=1):
        pass
    with pytest.raises(TypeError), prefetch([ARTICLES, SENTENCES], slots=1):
        pass  # the other task was not


@pytest.mark.skipif(
    psutil.virtual_memory().available < 1.5 * RUN_BYTES, reason="plans are made ahead in free memory only"
)
def test_plan_of_a_queued_planned_arm_is_made_once_for_all_seeds(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = make_spec(PROFILES["smoke"], "Plan-Q4", "toy_sentences")
    with prefetch([SENTENCES, planned, replace(planned, seed=1)], slots=1):
        wait_for(cache, "prepared/*")
    place = plan_place(planned)
    assert [path.name for path in (cache / "plans").glob("[!.]*")] == [place.name]
    assert cached_plan(replace(planned, seed=1))["planner"] == "exact"
    monkeypatch.setattr(subprocess, "Popen", None)
    with prefetch([SENTENCES, planned], slots=1):
        pass


@pytest.mark.parametrize(
    ("specs", "slots"),
    [
        ([SENTENCES, replace(SENTENCES, seed=1)], 1),
        ([SENTENCES, ARTICLES], 2),
        ([ARTICLES], 1),
        ([SENTENCES, replace(ARTICLES, memory_limit=2**32)], 1),
    ],
)
def test_no_process_without_queued_runs_or_with_a_memory_limit(
    specs: list[RunSpec], slots: int, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "Popen", None)
    with prefetch(specs, slots):
        pass
