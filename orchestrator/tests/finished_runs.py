"""Finished runs of small random models, for tests of exports."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from bitrank.run.record import Record
from bitrank.run.train_run import execute
from bitrank.spec.make_spec import make_spec
from bitrank.spec.profiles import find_profile
from bitrank.spec.run_spec import RunSpec, write_spec
from bitrank_trainer import ALONE

LINEAR = (
    *(f"self_attn.{part}_proj" for part in "qkvo"),
    *(f"mlp.{part}_proj" for part in ("gate", "up", "down")),
)


def llama_plan(formats: Callable[[int], str], table: str, ranks: Callable[[int], int]) -> dict[str, object]:
    """A plan for a Llama of two blocks: format and rank of its 14 matrices by number, and of its table."""
    names = [f"model.layers.{layer}.{name}" for layer in range(2) for name in LINEAR]
    precision = {name: formats(number) for number, name in enumerate(names)}
    return {
        "precision": {"model.embed_tokens": table, **precision},
        "ranks": {name: ranks(number) for number, name in enumerate(names)},
    }


def train(folder: Path, model: Path, plan: dict[str, object], task: str = "toy_articles") -> Path:
    """Train ``model`` for a few steps in the formats and ranks of ``plan``; return the run's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plan.json").write_text(json.dumps(plan))
    given = {
        "model": str(model),
        "plan": str(folder / "plan.json"),
        "device": "cpu",
        "dtype": "fp32",
        "steps": 4,
    }
    return execute_in(folder / "run", make_spec(find_profile("smoke"), "-", task, given))


def execute_in(run: Path, spec: RunSpec) -> Path:
    """Execute ``spec`` in the new folder ``run``, and return the folder."""
    run.mkdir(parents=True)
    write_spec(spec, run / "spec.json")
    execute(spec, run, Record(run, ALONE), ALONE)
    return run
