"""After an out-of-memory error a step repeats in smaller passes, with the same state and gradient."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from bitrank_trainer import OBJECTIVES, NoHook, Task, TrainError, TrainSettings, is_out_of_memory, train
from tiny_problem import batch, batches
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

OBJECTIVE = OBJECTIVES["classification"]
SETTINGS = TrainSettings(
    steps=6, learning_rate=1e-2, log_every=1, eval_every=3, checkpoint_every=2, accumulation=2
)


class Small(TorchDispatchMode):
    """Device with tensors of at most ``numbers`` elements; a larger result raises the allocator's error."""

    def __init__(self, numbers: int) -> None:
        super().__init__()
        self.numbers, self.refused = numbers, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if any(isinstance(t, torch.Tensor) and t.numel() > self.numbers for t in tree_leaves(out)):
            self.refused += 1
            torch.empty(2**50)
        return out


def run(
    make,
    folder,
    numbers: int | None,
    dropout: float = 0.0,
    settings: TrainSettings = SETTINGS,
    stream=batches,
):
    """Train a model whose forward pass runs on the simulated small device."""
    model, events, machine = make("classification"), list[dict[str, Any]](), Small(numbers or 10**9)
    model.dropout.p = dropout
    whole = model.forward

    def forward(**options: torch.Tensor) -> Any:
        with machine:
            return whole(**options)

    model.forward = forward
    progress = train(
        model,
        Task(OBJECTIVE, stream, lambda: {"acc": 0.5, "loss": 1.0}),
        NoHook(),
        settings,
        folder,
        events.append,
    )
    return model, progress, events, machine


def test_losses_after_recovery_equal_those_of_whole_batches(make, tmp_path) -> None:
    """8 × 6 tokens of width 8 have 384 elements; with a limit of 200, 4 sequences per pass fit.

    Losses agree up to the rounding of fp32 sums.
    """
    whole, _, want, _ = run(make, tmp_path / "a", None)
    cut, progress, got, machine = run(make, tmp_path / "b", 200)
    assert machine.refused == 1 and progress.micro_tokens == 24
    losses = [[e["metrics"]["train/loss"] for e in events if e["event"] == "train"] for events in (want, got)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for a, b in zip(whole.parameters(), cut.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_gradients_of_successful_passes_are_not_counted_twice(make, tmp_path) -> None:
    """The second of two accumulated batches fails after the first has stored its gradient."""

    def growing(skip: int):
        for number in range(skip, 10**6):
            yield batch(number, size=8 if number % 2 else 4)

    whole, *_ = run(make, tmp_path / "a", None, stream=growing)
    cut, progress, _, machine = run(make, tmp_path / "b", 200, stream=growing)
    assert machine.refused == 1 and progress.micro_tokens == 24
    for a, b in zip(whole.parameters(), cut.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_passes_are_halved_until_they_fit_and_reported(make, tmp_path) -> None:
    _, progress, events, machine = run(make, tmp_path, 60)
    messages = [e for e in events if e["event"] == "out_of_memory"]
    assert machine.refused == len(messages) == 3 and progress.micro_tokens == 6
    assert [e["step"] for e in messages] == [1, 1, 1]
    assert messages[0]["message"].startswith(
        "out of memory at step 1 with 8 × 6 tokens: passes of at most 24 tokens from here on"
    )
    assert messages[-1]["tags"] == {"out_of_memory": messages[-1]["message"]}
    assert "DefaultCPUAllocator: can't allocate memory" in messages[0]["reason"]


def test_retry_starts_from_the_same_random_state(make, tmp_path) -> None:
    """Random numbers drawn after a step do not depend on the number of attempts.

    Smaller passes draw other dropout masks, so the test compares two runs with the same final pass size.
    """
    settings = TrainSettings(steps=3, learning_rate=1e-2, micro_tokens=24)
    straight, *_ = run(make, tmp_path / "a", None, dropout=0.2, settings=settings)
    retried, _, _, machine = run(
        make, tmp_path / "b", 200, dropout=0.2, settings=TrainSettings(steps=3, learning_rate=1e-2)
    )
    assert machine.refused == 1
    for a, b in zip(straight.parameters(), retried.parameters(), strict=True):
        assert torch.equal(a, b)


def test_one_sequence_that_does_not_fit_raises_train_error(make, tmp_path) -> None:
    with pytest.raises(
        TrainError,
        match=r"out of memory at step 1: one sequence of 4 tokens does not fit on cpu .*max_length",
    ):
        run(make, tmp_path, 20)


def test_resumed_run_keeps_the_pass_limit(make, tmp_path) -> None:
    run(make, tmp_path, 200, settings=TrainSettings(steps=2, learning_rate=1e-2, accumulation=2))
    _, progress, _, machine = run(make, tmp_path, 200)
    assert progress.step == 6 and machine.refused == 0 and progress.micro_tokens == 24


def test_other_errors_propagate(make, tmp_path) -> None:
    class Broken:
        metric, higher_is_better = "acc", True
        rows, metrics, weight = OBJECTIVE.rows, OBJECTIVE.metrics, OBJECTIVE.weight

        def loss(self, model, batch, device):
            raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        train(make("classification"), Task(Broken(), batches, dict), NoHook(), SETTINGS, tmp_path, print)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.15 GiB"
        ),
        RuntimeError(
            "MPS backend out of memory (MPS allocated: 5.50 GB, other allocations: 14.76 GB, max allowed: "
            "20.40 GB). Tried to allocate "
            "147.24 MB on private pool. Use PYTORCH_MPS_HIGH_WATERMARK_RATIO=0.0 to disable upper limit for "
            "memory allocations (may cause "
            "system failure)."
        ),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:121] data. DefaultCPUAllocator: not enough memory: you tried to "
            "allocate 4194304 bytes."
        ),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("could not create a memory object"),
        MemoryError(),
    ],
    ids=lambda error: str(error)[:20],
)
def test_allocator_errors_are_recognized(error: BaseException) -> None:
    assert is_out_of_memory(error)


def test_allocator_error_of_this_machine_is_recognized() -> None:
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        torch.empty(2**50)
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


_LIMITED = """
import json, resource, sys, torch
from types import SimpleNamespace
import numpy as np
from bitrank_trainer import OBJECTIVES, NoHook, Task, TrainSettings, has_tcmalloc, train
from pathlib import Path

class Wide(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.wide = torch.nn.Embedding(50, 64), torch.nn.Linear(64, 16384)
        self.head = torch.nn.Linear(16384, 2)
    def forward(self, input_ids, attention_mask):
        return SimpleNamespace(logits=self.head(torch.tanh(self.wide(self.embedding(input_ids))).mean(1)))

def batches(skip):
    while True:
        random = np.random.default_rng(skip)
        ids = random.integers(0, 50, (16, 128))
        labels = (ids[:, 0] > 25).astype(int)
        mask = np.ones_like(ids)
        yield {"input_ids": ids, "attention_mask": mask, "labels": labels, "index": np.arange(16)}
        skip += 1

def go(folder):
    events = []
    task = Task(OBJECTIVES["classification"], batches, lambda: {"acc": 0.5, "loss": 1.0})
    settings = TrainSettings(steps=3, learning_rate=1e-3, log_every=1)
    train(Wide(), task, NoHook(), settings, Path(folder), events.append)
    losses = [e["metrics"]["train/loss"] for e in events if e["event"] == "train"]
    return losses, [e["message"] for e in events if e["event"] == "out_of_memory"]

torch.set_num_threads(1)
if "limited" in sys.argv:
    now = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + 200 * 2**20,) * 2)
print(json.dumps([has_tcmalloc(), *go(sys.argv[1])]))
"""
TCMALLOC = next((str(path) for path in Path("/usr/lib").glob("*/libtcmalloc_minimal.so.4")), None)
_PRELOADED = pytest.param(
    TCMALLOC, marks=pytest.mark.skipif(TCMALLOC is None, reason="needs apt-get install libtcmalloc-minimal4")
)


def train_in_child(folder: Path, preloaded: str | None, *options: str) -> tuple[list[float], list[str]]:
    """Losses and out-of-memory messages of one training in a separate process."""
    command, environment = (
        [sys.executable, "-c", _LIMITED, str(folder), *options],
        {**os.environ, "LD_PRELOAD": preloaded or ""},
    )
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    from_tcmalloc, losses, messages = json.loads(done.stdout.splitlines()[-1])
    assert from_tcmalloc == bool(preloaded)
    return losses, messages


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS is enforced on Linux only")
@pytest.mark.parametrize("preloaded", [None, _PRELOADED], ids=["system", "tcmalloc"])
def test_training_survives_a_real_memory_limit(tmp_path: Path, preloaded: str | None) -> None:
    """A pass saves about 256 MiB and the system grants 200 MiB: the allocator fails, half the batch fits."""
    (whole, none), (cut, messages) = (
        train_in_child(tmp_path / "whole", preloaded),
        train_in_child(tmp_path / "cut", preloaded, "limited"),
    )
    assert none == [] and messages and messages[0].startswith("out of memory at step 1 with 16 × 128 tokens")
    assert cut == pytest.approx(whole, rel=1e-4)


_FULL = """
import resource, sys, torch
from pathlib import Path
from bitrank_trainer.checkpoints import load_weights, save_weights

model, path = torch.nn.Linear(1024, 1024), Path(sys.argv[1]) / "best.safetensors"
want = model.weight.detach().clone()
save_weights(model, path)
model.weight.data.zero_()
torch.empty(2**18)  # after a 1 MiB block was freed, glibc serves such blocks from its heap
blocks = [torch.empty(2**17) for _ in range(200)]
del blocks[:-1]  # the heap keeps 100 MiB
now = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now, now))
load_weights(model, path)
assert torch.equal(model.weight, want)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS is enforced on Linux only")
@pytest.mark.parametrize("preloaded", [None, _PRELOADED], ids=["system", "tcmalloc"])
def test_best_weights_load_without_free_address_space(tmp_path: Path, preloaded: str | None) -> None:
    environment = {**os.environ, "LD_PRELOAD": preloaded or "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", _FULL, str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
