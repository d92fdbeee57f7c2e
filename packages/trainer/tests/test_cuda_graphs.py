"""Passes by graphs, with a recorder that repeats the recorded function on the CPU."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from bitrank_trainer import OBJECTIVES, NoHook, Task, TrainSettings, cuda_graphs, loop, train
from bitrank_trainer.cuda_graphs import CudaGraphs, graphs_for
from bitrank_trainer.distributed.data_parallel import ALONE
from tiny_problem import TinyClassifier, TinyDeep, TinyLm, batch
from torch import nn

SETTINGS = {"steps": 12, "learning_rate": 1e-2, "log_every": 1, "eval_every": 12, "checkpoint_every": 12}


class Recorder:
    """Counts recordings and replays; a replay runs the function again."""

    def __init__(self) -> None:
        self.recorded, self.replayed = 0, 0

    def __call__(self, run: Callable[[], None]) -> Callable[[], None]:
        self.recorded += 1

        def replay() -> None:
            self.replayed += 1
            run()

        return replay


def widths(skip: int, lm: bool):
    """Batches of three widths, in turns."""
    number = skip
    while True:
        yield batch(number % 30, length=5 + number % 3, lm=lm)
        number += 1


def trained(
    model: nn.Module,
    folder,
    monkeypatch,
    record: Any = None,
    kind: str = "language-modelling",
    **changes: Any,
) -> tuple[list[float], list[dict[str, Any]]]:
    objective = OBJECTIVES[kind]

    def graphs_for(*_: Any) -> CudaGraphs | None:
        return None if record is None else CudaGraphs(objective, "cpu", record)

    monkeypatch.setattr(loop, "graphs_for", graphs_for)
    events: list[dict[str, Any]] = []
    lm = kind == "language-modelling"
    task = Task(objective, lambda skip: widths(skip, lm), lambda: {objective.metric: 1.0}, "cpu")
    train(model, task, NoHook(), TrainSettings(**{**SETTINGS, **changes}), folder, events.append)
    return [event["metrics"]["train/loss"] for event in events if event["event"] == "train"], events


def made(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return kind()


@pytest.mark.parametrize(
    "changes",
    [{}, {"accumulation": 2}, {"micro_tokens": 21}, {"loss_scale": 1024.0}, {"clip": 0.01}],
    ids=str,
)
def test_training_by_graphs_equals_plain_training(tmp_path, monkeypatch, changes: dict[str, Any]) -> None:
    record, graphed, plain = Recorder(), made(TinyDeep), made(TinyDeep)
    losses, events = trained(graphed, tmp_path / "a", monkeypatch, record, **changes)
    expected, _ = trained(plain, tmp_path / "b", monkeypatch, **changes)
    assert losses == expected
    for (name, a), (_, b) in zip(graphed.named_parameters(), plain.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    assert record.recorded and record.replayed > 2 * record.recorded
    assert not [event for event in events if event["event"] == "no_cuda_graphs"]


def test_each_shape_is_recorded_at_its_second_pass(tmp_path, monkeypatch) -> None:
    record = Recorder()
    trained(made(TinyDeep), tmp_path, monkeypatch, record)
    # Three widths, four passes each: one plain, one recorded and compared, two replayed.
    assert (record.recorded, record.replayed) == (3, 9)


def test_shapes_above_the_limit_stay_plain(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(cuda_graphs, "_SHAPES", 1)
    record = Recorder()
    losses, _ = trained(made(TinyDeep), tmp_path / "a", monkeypatch, record)
    assert record.recorded == 1
    assert losses == trained(made(TinyDeep), tmp_path / "b", monkeypatch)[0]


class Spare(TinyLm):
    """Has a trainable parameter that its loss does not reach."""

    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Parameter(torch.ones(3))


def test_parameter_without_gradient_is_left_alone(tmp_path, monkeypatch) -> None:
    model = made(Spare)
    trained(model, tmp_path, monkeypatch, Recorder(), weight_decay=0.5)
    assert torch.equal(model.spare, torch.ones(3))


class Wrong(Recorder):
    """Replays that add ``factor`` times the gradients that they should, and set the loss that they should."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def __call__(self, run: Callable[[], None]) -> Callable[[], None]:
        replay = super().__call__(run)
        added = torch._foreach_add_

        def wrong() -> None:
            def scaled(to: Any, parts: Any) -> None:
                added(to, [part * self.factor for part in parts])

            torch._foreach_add_ = scaled
            try:
                replay()
            finally:
                torch._foreach_add_ = added

        return wrong


@pytest.mark.parametrize("factor", [0.0, 0.5, 2.0, math.nan])
def test_wrong_replay_is_refused_and_changes_no_number(tmp_path, monkeypatch, factor: float) -> None:
    graphed, plain = made(TinyDeep), made(TinyDeep)
    losses, events = trained(graphed, tmp_path / "a", monkeypatch, Wrong(factor))
    assert losses == trained(plain, tmp_path / "b", monkeypatch)[0]
    assert all(torch.equal(a, b) for a, b in zip(graphed.parameters(), plain.parameters(), strict=True))
    (notice,) = [event for event in events if event["event"] == "no_cuda_graphs"]
    assert "a replay differs from the plain pass by" in notice["message"]


def test_model_that_changes_from_pass_to_pass_is_refused(tmp_path, monkeypatch) -> None:
    class Counting(TinyLm):
        calls = 0

        def forward(self, input_ids: Any, attention_mask: Any = None, use_cache: bool = False) -> Any:
            self.calls += 1
            return SimpleNamespace(logits=super().forward(input_ids).logits * self.calls)

    _, events = trained(made(Counting), tmp_path, monkeypatch, Recorder(), steps=6)
    assert [event["event"] for event in events if "cuda_graphs" in event["event"]] == ["no_cuda_graphs"]


class Sharp(TinyDeep):
    """Has gradients above 1, which overflow at the largest loss scale."""

    def forward(self, input_ids: Any, attention_mask: Any = None, use_cache: bool = False) -> Any:
        return SimpleNamespace(logits=super().forward(input_ids).logits * 256)


def test_pass_that_overflows_is_recorded_later(tmp_path, monkeypatch) -> None:
    """The loss scale is too large at first, and halves with every step that it skips."""
    record, options = Recorder(), {"loss_scale": 2.0**128 - 2.0**104, "learning_rate": 1e-4}
    losses, events = trained(made(Sharp), tmp_path / "a", monkeypatch, record, **options)
    assert losses == trained(made(Sharp), tmp_path / "b", monkeypatch, **options)[0]
    skipped = max(event["metrics"]["train/skipped"] for event in events if event["event"] == "train")
    assert skipped > 2 and record.recorded == 3
    assert not [event for event in events if event["event"] == "no_cuda_graphs"]


def test_memory_that_runs_out_first_frees_the_graphs(tmp_path, monkeypatch) -> None:
    """The step is repeated without graphs, in passes as large as before."""
    record, graphs, kept = Recorder(), [], CudaGraphs.add

    def full(self: CudaGraphs, *rest: Any) -> Any:
        graphs.append(weakref.ref(self))
        if len(graphs) == 8:
            raise RuntimeError("CUDA error: out of memory")
        return kept(self, *rest)

    monkeypatch.setattr(CudaGraphs, "add", full)
    losses, events = trained(made(TinyDeep), tmp_path / "a", monkeypatch, record)
    assert losses == trained(made(TinyDeep), tmp_path / "b", monkeypatch)[0]
    (notice,) = [event for event in events if event["event"] == "no_cuda_graphs"]
    assert "out of memory at step 8" in notice["message"] and len(graphs) == 8
    assert not [event for event in events if event["event"] == "out_of_memory"]
    gc.collect()
    assert graphs[0]() is None


def test_random_passes_stay_plain_with_the_same_numbers(tmp_path, monkeypatch) -> None:
    record, kind = Recorder(), "classification"
    losses, events = trained(made(TinyClassifier), tmp_path / "a", monkeypatch, record, kind)
    assert losses == trained(made(TinyClassifier), tmp_path / "b", monkeypatch, None, kind)[0]
    (notice,) = [event for event in events if event["event"] == "no_cuda_graphs"]
    assert "draw random numbers" in notice["message"] and record.recorded == 0


def test_operations_that_cannot_be_recorded_run_plainly(tmp_path, monkeypatch) -> None:
    def fail(run: Callable[[], None]) -> Callable[[], None]:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    losses, events = trained(made(TinyDeep), tmp_path / "a", monkeypatch, fail)
    assert losses == trained(made(TinyDeep), tmp_path / "b", monkeypatch)[0]
    (notice,) = [event for event in events if event["event"] == "no_cuda_graphs"]
    assert notice["message"] == (
        "no CUDA graphs: its operations cannot be recorded (operation not permitted when stream is "
        "capturing); the passes run operation by operation"
    )
    assert notice["tags"] == {"cuda_graphs": notice["message"]}


class ChangingRanks(NoHook):
    def is_constant(self) -> bool:
        return False


def test_graphs_are_for_cuda_without_hook_or_switch(monkeypatch) -> None:
    objective = OBJECTIVES["classification"]
    assert graphs_for(objective, "cpu", NoHook()) is None
    assert graphs_for(objective, "mps", NoHook()) is None
    assert isinstance(graphs_for(objective, "cuda", NoHook(), ALONE), CudaGraphs)
    assert graphs_for(objective, "cuda", ChangingRanks(), ALONE) is None
    assert graphs_for(object(), "cuda", NoHook(), ALONE) is None  # its inputs are not known before
    monkeypatch.setenv("BITRANK_CUDA_GRAPHS", "0")
    assert graphs_for(objective, "cuda", NoHook(), ALONE) is None


only_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU with CUDA or ROCm")


def on_gpu(
    kind: type[nn.Module], folder: Any, monkeypatch: Any, graphs: bool, objective: str = "language-modelling"
) -> tuple[list[float], list[dict[str, Any]]]:
    """Losses and events of a training on the GPU."""
    monkeypatch.setenv("BITRANK_CUDA_GRAPHS", "1" if graphs else "0")
    chosen, events = OBJECTIVES[objective], []
    lm = objective == "language-modelling"
    task = Task(chosen, lambda skip: widths(skip, lm), lambda: {chosen.metric: 1.0}, "cuda")
    train(made(kind).cuda(), task, NoHook(), TrainSettings(**SETTINGS), folder, events.append)
    return [event["metrics"]["train/loss"] for event in events if event["event"] == "train"], events


@only_cuda
def test_captured_passes_equal_plain_passes(tmp_path, monkeypatch) -> None:
    losses, events = on_gpu(TinyDeep, tmp_path / "a", monkeypatch, True)
    expected, _ = on_gpu(TinyDeep, tmp_path / "b", monkeypatch, False)
    assert losses == pytest.approx(expected, rel=1e-4)
    assert [event["event"] for event in events if "cuda_graphs" in event["event"]] == ["cuda_graphs"]


class Reading(TinyDeep):
    """Reads a number from the device, which a recording cannot do."""

    def forward(self, input_ids: torch.Tensor, attention_mask: Any = None, use_cache: bool = False) -> Any:
        logits = super().forward(input_ids).logits
        return SimpleNamespace(logits=logits * (1.0 if logits.sum().item() else 2.0))


@only_cuda
def test_training_goes_on_after_a_capture_that_fails(tmp_path, monkeypatch) -> None:
    losses, events = on_gpu(Reading, tmp_path / "a", monkeypatch, True)
    expected, _ = on_gpu(Reading, tmp_path / "b", monkeypatch, False)
    assert losses == pytest.approx(expected, rel=1e-4)
    (notice,) = [event for event in events if event["event"] == "no_cuda_graphs"]
    assert "cannot be recorded" in notice["message"]
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    torch.cuda.empty_cache()
    # The device and its random numbers still work.
    torch.manual_seed(0)
    random, _ = on_gpu(TinyClassifier, tmp_path / "c", monkeypatch, True, "classification")
    torch.manual_seed(0)
    assert random == pytest.approx(
        on_gpu(TinyClassifier, tmp_path / "d", monkeypatch, False, "classification")[0], rel=1e-4
    )
