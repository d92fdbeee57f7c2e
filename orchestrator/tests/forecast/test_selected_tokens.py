"""Heads that select a token by its id (T5, BART): the forecast has the shapes of a real pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from bitrank.forecast.dry_run import Stage, dry_run, unplanned_model
from bitrank.forecast.live_bytes import LiveBytes
from bitrank.process.compute import Compute
from bitrank.spec.run_spec import RunSpec
from bitrank_data import full_batch
from bitrank_quant import block_matrices
from small_models import write

Saved = list[tuple[tuple[int, ...], torch.dtype]]


def stage_of(folder: Path) -> Stage:
    spec = RunSpec(
        config="B-FP", task="toy", model=str(folder), kind="classification", steps=1, fused=False, dropout=0.0
    )
    compute = Compute("cpu", "fp32", threads=None)
    unplanned = unplanned_model(spec, 2, compute)
    ranks = {matrix.name: 2 for matrix in block_matrices(unplanned.model)}
    return dry_run(spec, compute, unplanned, {}, ranks, 10)


def saved_by(stage: Stage, batch: Any, device: str) -> Saved:
    """Shapes and dtypes of the tensors that autograd saves for the backward pass."""
    saved: Saved = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved.append((tuple(tensor.shape), tensor.dtype))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        stage.objective.loss(stage.model, batch, device).backward()
    return saved


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_forecast_of_a_head_that_selects_a_token_has_the_shapes_of_a_real_pass(
    name: str, tmp_path: Path
) -> None:
    stage = stage_of(write(tmp_path / name, name))
    stage.model.train()
    with LiveBytes():
        forecast = saved_by(stage, full_batch(3, 8, stage.kind), "meta")
    config = stage.model.config
    stage.model.to_empty(device="cpu")
    for tensor in (*stage.model.parameters(), *stage.model.buffers()):
        tensor.data.zero_()
    batch = full_batch(3, 8, stage.kind)
    batch["input_ids"][:] = (config.eos_token_id + 1) % config.vocab_size
    batch["input_ids"][:, -1] = config.eos_token_id
    real = saved_by(stage, batch, "cpu")
    assert sorted(map(str, forecast)) == sorted(map(str, real))


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_memory_of_such_a_head_grows_with_the_batch(name: str, tmp_path: Path) -> None:
    stage = stage_of(write(tmp_path / name, name))
    small, large = stage.step((4, 16)).peak, stage.step((8, 16)).peak
    assert large == pytest.approx(2 * small, rel=0.05)
    assert 0 < stage.evaluate((8, 16)).peak < large
