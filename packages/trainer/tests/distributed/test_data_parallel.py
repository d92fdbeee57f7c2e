"""Training in two processes equals training in one: losses, weights, validations, checkpoints."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from bitrank_trainer import ALONE, OBJECTIVES, Joined, Sharded, TrainError, join
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from tiny_problem import TinyDeep, TinyLm, batch

PROGRAM = Path(__file__).parents[1] / "rank.py"
KINDS = ("classification", "language-modelling")
ROUNDING = 2e-6  # tolerance for fp32 losses of about one nat after twenty steps


@dataclass(frozen=True)
class Outcome:
    """Events and final weights of each process."""

    events: list[list[dict[str, Any]]]
    weights: list[dict[str, torch.Tensor]]

    def curve(self, event: str, key: str) -> dict[int, float]:
        return {e["step"]: e["metrics"][key] for e in self.events[0] if e["event"] == event}


def session(place: Path, count: int, jobs: dict[str, dict[str, Any]], *form: str) -> dict[str, Outcome]:
    """Run ``jobs`` one after the other in ``count`` processes; return outcomes by name.

    Each job keeps its checkpoints in ``place / folder``.
    """
    options = [
        {"out": str(place / f"{name}-{count}"), **job, "folder": str(place / job.get("folder", name))}
        for name, job in jobs.items()
    ]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo" if sys.platform == "linux" else "lo0",
    }
    with TemporaryDirectory() as rendezvous_file:
        started = [
            subprocess.Popen(
                [
                    sys.executable,
                    PROGRAM,
                    str(rank),
                    str(count),
                    f"{rendezvous_file}/file",
                    json.dumps(options),
                    *form,
                ],
                env=environment,
            )
            for rank in range(count)
        ]
        assert [process.wait(timeout=300) for process in started] == [0] * count
    outs = {name: [place / f"{name}-{count}-{rank}" for rank in range(count)] for name in jobs}
    return {
        name: Outcome(
            [json.loads(Path(f"{out}.json").read_text()) for out in paths],
            [load_file(f"{out}.safetensors") for out in paths],
        )
        for name, paths in outs.items()
    }


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def outcomes(place: Path) -> dict[str, Outcome]:
    """Outcomes of two processes, of one, and of two again.

    Jobs with ``stop_after`` stop within the ninth step, after the checkpoint of the sixth.
    """
    two = {f"two {kind}": {"kind": kind} for kind in KINDS} | {
        "two in passes": {"micro_tokens": 12},
        "two cut": {"stop_after": 17, "folder": "2 to 2"},
        "two continued by two": {"folder": "2 to 2"},
        "two cut for one": {"stop_after": 17, "folder": "2 to 1"},
        "dropout": {"dropout": 0.2},
        "dropout cut": {"dropout": 0.2, "stop_after": 17},
        "dropout continued": {"dropout": 0.2, "folder": "dropout cut"},
    }
    one = {f"one {kind}": {"kind": kind} for kind in KINDS} | {
        **{f"one joined {kind}": {"kind": kind, "joined": True} for kind in KINDS},
        "two continued by one": {"folder": "2 to 1"},
        "one cut": {"stop_after": 17, "folder": "1 to 2"},
    }
    done = session(place, 2, two) | session(place, 1, one)
    return done | session(place, 2, {"one continued by two": {"folder": "1 to 2"}})


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def close(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    # AdamW divides by the gradient's magnitude, which amplifies rounding where the gradient is close to zero.
    return all(torch.allclose(a[name], b[name], atol=1e-4) for name in a)


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_give_the_losses_and_weights_of_one(
    outcomes: dict[str, Outcome], place: Path, kind: str
) -> None:
    """Covers uneven batches, one with a single row, accumulation, clipping and a penalty."""
    one, two = outcomes[f"one {kind}"], outcomes[f"two {kind}"]
    for key in ("train/loss", "train/grad_norm", "train/reg"):
        alone, together = one.curve("train", key), two.curve("train", key)
        assert list(together) == list(range(1, 21))
        assert together == pytest.approx(alone, abs=ROUNDING, rel=ROUNDING), key
        assert len(set(together.values())) == 20, "the loss is constant, so the test shows nothing"
    assert two.curve("train", "train/lr") == one.curve("train", "train/lr")
    assert two.curve("validation", "val/loss") == pytest.approx(
        one.curve("validation", "val/loss"), abs=ROUNDING
    )
    assert same(*two.weights) and close(one.weights[0], two.weights[0])
    assert [path.name for path in (place / f"two {kind}").glob("step-*")] == ["step-00000020"]


@pytest.mark.parametrize("processes", ["one", "two"])
@pytest.mark.parametrize("kind", KINDS)
def test_accumulated_uneven_batches_equal_one_joined_batch(
    outcomes: dict[str, Outcome], kind: str, processes: str
) -> None:  # fmt: skip
    whole, cut = outcomes[f"one joined {kind}"], outcomes[f"{processes} {kind}"]
    for key in ("train/loss", "train/grad_norm", "train/reg"):
        expected = pytest.approx(whole.curve("train", key), abs=ROUNDING, rel=ROUNDING)
        assert cut.curve("train", key) == expected, key
    assert close(whole.weights[0], cut.weights[0])


def test_micro_batches_leave_two_process_training_unchanged(outcomes: dict[str, Outcome]) -> None:
    whole, cut = outcomes["two classification"], outcomes["two in passes"]
    assert cut.curve("train", "train/loss") == pytest.approx(whole.curve("train", "train/loss"), abs=ROUNDING)
    assert same(*cut.weights)


@pytest.mark.parametrize(("before", "after"), [("two", "two"), ("two", "one"), ("one", "two")])
def test_checkpoint_resumes_with_any_number_of_processes(
    outcomes: dict[str, Outcome], before: str, after: str
) -> None:
    straight, resumed = outcomes[f"{before} classification"], outcomes[f"{before} continued by {after}"]
    assert list(resumed.curve("train", "train/loss")) == list(range(7, 21)), (
        "the run restarted, so the test shows nothing"
    )
    expected = {step: straight.curve("train", "train/loss")[step] for step in range(7, 21)}
    if before == after:
        assert resumed.curve("train", "train/loss") == expected and same(
            resumed.weights[0], straight.weights[0]
        )
    else:
        assert resumed.curve("train", "train/loss") == pytest.approx(expected, abs=ROUNDING)
        assert close(resumed.weights[0], straight.weights[0])


def test_dropout_differs_between_processes_and_resumes_bit_identically(
    outcomes: dict[str, Outcome], place: Path
) -> None:
    tensors = load_file(next((place / "dropout").glob("step-*")) / "state.safetensors")
    assert not torch.equal(tensors["rng0:cpu"], tensors["rng1:cpu"])
    straight, resumed = outcomes["dropout"], outcomes["dropout continued"]
    assert same(resumed.weights[0], straight.weights[0]) and same(*resumed.weights)
    assert not close(straight.weights[0], outcomes["two classification"].weights[0])


def test_sharded_base_trains_like_replicated_base(place: Path) -> None:
    """Covers batches of one row, micro-batches, and 17 evaluation batches for two processes."""
    options = {"kind": "language-modelling", "deep": True}
    jobs = {"whole": options, "in passes": {**options, "micro_tokens": 12}}
    cut = {"cut": {**options, "stop_after": 17, "folder": "deep"}, "continued": {**options, "folder": "deep"}}
    whole, sharded = (
        session(place, 2, jobs),
        session(place, 2, {f"sharded {name}": job for name, job in (jobs | cut).items()}, "sharded"),
    )
    for name in jobs:
        one, two = whole[name], sharded[f"sharded {name}"]
        for event, key in (("train", "train/loss"), ("train", "train/grad_norm"), ("validation", "val/loss")):
            assert two.curve(event, key) == pytest.approx(
                one.curve(event, key), abs=ROUNDING, rel=ROUNDING
            ), key
        assert close(one.weights[0], two.weights[0]) and same(*two.weights)
    resumed, straight = sharded["sharded continued"], sharded["sharded whole"]
    assert list(resumed.curve("train", "train/loss")) == list(range(7, 21))
    assert same(resumed.weights[0], straight.weights[0])
    held = [outcome.events[rank][0]["frozen"] for outcome in (whole["whole"], straight) for rank in (0, 1)]
    blocks = 3 * (64 + 8)
    assert held == [blocks + 340, blocks + 340, blocks // 2 + 340, blocks // 2 + 340]


@given(st.integers(0, 20), st.integers(1, 5))
def test_sharded_processes_evaluate_equally_many_batches(batches: int, count: int) -> None:
    dealt = [list(Sharded(rank, count).distribute_batches(range(batches))) for rank in range(count)]
    assert len({len(part) for part in dealt}) == 1
    assert sorted(number for part in dealt for number, counts in part if counts) == list(range(batches))


def test_unshardable_model_raises_train_error() -> None:
    model = TinyDeep()
    model.layers[1].frozen = QuantLike()
    with pytest.raises(TrainError, match=r"those of layers\.1 are decoded first"):
        Sharded(0, 2).shard_base(model)
    with pytest.raises(TrainError, match="no transformer blocks"):
        Sharded(0, 2).shard_base(TinyLm())


class QuantLike(torch.nn.Module):
    """Layer with codes in a buffer, like low-bit layers."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("codes", torch.zeros(8, 8, dtype=torch.uint8))


@given(st.integers(1, 12), st.integers(1, 5), st.sampled_from(KINDS))
def test_shares_of_all_processes_form_the_batch(rows: int, count: int, kind: str) -> None:
    whole = batch(rows, rows, lm=kind != "classification")
    shares = [Joined(rank, count).local_rows(whole) for rank in range(count)]
    assert sorted(np.concatenate([share["index"] for share in shares])) == sorted(whole["index"])
    assert sum(OBJECTIVES[kind].weight(share) for share in shares) == OBJECTIVES[kind].weight(whole)
    assert sum(int(share["attention_mask"].sum()) for share in shares) == int(whole["attention_mask"].sum())
    assert all(share["attention_mask"].shape[1] == whole["attention_mask"].shape[1] for share in shares)
    assert ALONE.local_rows(whole) is whole


@given(st.integers(0, 20), st.integers(1, 5))
def test_every_evaluation_batch_is_assigned_to_one_process(batches: int, count: int) -> None:
    dealt = [
        [batch for batch, _ in Joined(rank, count).distribute_batches(range(batches))]
        for rank in range(count)
    ]
    assert sorted(chain.from_iterable(dealt)) == list(range(batches))


def test_more_processes_than_gpus_raise_train_error(tmp_path: Path) -> None:
    with pytest.raises(TrainError, match="3 processes need 3 GPUs, one each, and this machine has 1"):
        join("mps", 0, 3, tmp_path / "rendezvous")
    gpus = torch.cuda.device_count()
    with pytest.raises(TrainError, match=f"this machine has {gpus}"):
        join("cuda", 0, gpus + 1 if gpus else 2, tmp_path / "rendezvous")
