"""Small complete studies in a real store: arms that differ in bits, ranks, rank schedule and quality."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

# Arm → format inside the layers, final ranks of (q, k, v, o, up, down), whether ranks change in training,
# accuracy, nats per token added to the loss.
ARMS: dict[str, tuple[str, tuple[int, ...], bool, float, float]] = {
    "B-FP": ("bf16", (8, 8, 8, 8, 8, 8), False, 0.86, 0.0),
    "B-Q4": ("nf4-dq", (8, 8, 8, 8, 8, 8), False, 0.80, 0.12),
    "B-Ada": ("bf16", (2, 1, 7, 6, 5, 3), True, 0.855, 0.02),
    "Joint-1": ("nf4-dq", (1, 1, 8, 7, 4, 3), True, 0.79, 0.15),
    "Joint-2": ("int8", (2, 2, 6, 6, 4, 4), True, 0.85, 0.01),
    "Joint-3": ("int8", (6, 6, 6, 6, 10, 10), False, 0.86, 0.0),
}
MODULES = (
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
)
LAYERS = 4
STEPS = (1, 10, 20, 30)
MIB = {"bf16": 40.0, "int8": 24.0, "nf4-dq": 16.0}


def add_study(
    maker: Any,
    arms: Iterable[str] = tuple(ARMS),
    tasks: Iterable[str] = ("movies", "wiki"),
    seeds: int = 1,
    n: int = 200,
) -> list[str]:
    """Add a finished run for every cell of the grid; returns the run ids."""
    cells = [(arm, task, seed) for task in tasks for arm in arms for seed in range(seeds)]
    return [_add(maker, arm, task, seed, n) for arm, task, seed in cells]


def _add(maker: Any, arm: str, task: str, seed: int, n: int) -> str:
    fmt, ranks, adaptive, accuracy, added_nats = ARMS.get(arm, ("int8", (4,) * 6, False, 0.84, 0.03))
    draw = random.Random(f"{arm} {task} {seed}")
    shared = random.Random(task)
    difficulty = [shared.random() for _ in range(n)]
    common = _metrics(fmt, ranks, adaptive)
    if task.startswith("wiki"):
        tokens = [100 + index % 7 for index in range(40)]
        nats = [
            count * (2.8 + added_nats + difficulty[index] + draw.gauss(0, 0.01))
            for index, count in enumerate(tokens)
        ]
        rows: dict[str, Any] = {
            "id": [f"doc-{index}" for index in range(40)],
            "loss": nats,
            "tokens": tokens,
            "right": [9] * 40,
        }
        loss = sum(nats) / sum(tokens)
        metrics = {
            "eval/ppl": 2.718281828459045**loss,
            "eval/loss": loss,
            "zero/ppl": 40.0 * (1 + added_nats),
            **common,
        }
    else:
        correct = [value + draw.gauss(0, 0.05) < accuracy for value in difficulty]
        rows = {
            "id": [f"example-{index}" for index in range(n)],
            "label": [index % 2 for index in range(n)],
            "loss": [0.4] * n,
            "tokens": [9] * n,
        }
        rows |= {"prediction": [index % 2 if hit else 1 - index % 2 for index, hit in enumerate(correct)]}
        rows |= {"confidence": [0.5 + 0.5 * value for value in difficulty]}
        metrics = {
            "eval/acc": sum(correct) / n,
            "eval/loss": 1.2 - sum(correct) / n,
            "zero/acc": 0.5,
            **common,
        }
    run_id = maker.run(
        arm,
        task=task,
        seed=seed,
        metrics=metrics,
        predictions=rows,
        files=_files(fmt, ranks, adaptive),
        tags={"version.torch": "2.13.0"},
    )
    _curves(maker, run_id, metrics["eval/loss"], draw)
    return str(run_id)


def _metrics(fmt: str, ranks: tuple[int, ...], adaptive: bool) -> dict[str, float]:
    params = float(LAYERS * 768 * (12 * 6 if adaptive else sum(ranks)))
    return {
        "model/mib": MIB[fmt],
        "model/bits": MIB[fmt] / 2.5,
        "mem/peak_mib": 900 + MIB[fmt] + params / 1e4,
        "mem/import_mib": 460.0,
        "lora/params": params,
        "lora/mib": params * 2 / 2**20,
        "lora/percent": params / 2e5,
        "lora/rank": float(LAYERS * sum(ranks)),
        "speed/train_tok_s": 4000.0,
        "time/total_s": 80.0,
    }


def _files(fmt: str, ranks: tuple[int, ...], adaptive: bool) -> dict[str, Any]:
    names = [f"bert.encoder.layer.{layer}.{module}" for layer in range(LAYERS) for module in MODULES]
    final = dict(zip(names, ranks * LAYERS, strict=True))
    over_time = {
        str(step): {name: max(rank, 12 - index * 4) if adaptive else rank for name, rank in final.items()}
        for index, step in enumerate(STEPS)
    }
    precision = {"bert.embeddings.word_embeddings": "bf16", **dict.fromkeys(names, fmt)}
    matrices = [
        {
            "name": name,
            "role": "attention",
            "layer": int(name.split(".")[3]),
            "shape": [8, 8],
            "tied_to": None,
        }
        for name in names
    ]
    plan = {
        "precision": precision,
        "ranks": dict.fromkeys(names, 12) if adaptive else final,
        "matrices": matrices,
        "applied": {},
    }
    return {"plan.json": plan, "ranks.json": {"final": final, "over_time": over_time}}


def _curves(maker: Any, run_id: str, end: float, draw: random.Random) -> None:
    points = [
        (run_id, "train/loss", step, step, end + 1 / step + draw.gauss(0, 0.02), 0) for step in range(1, 31)
    ]
    points += [(run_id, "val/loss", step, step, end + 1 / step, 0) for step in (15, 30)]
    maker.sqlite.executemany("INSERT INTO metrics VALUES (?, ?, ?, ?, ?, ?)", points)
    maker.sqlite.commit()
