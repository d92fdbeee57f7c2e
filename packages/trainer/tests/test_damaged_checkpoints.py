"""A damaged checkpoint is never restored; training from the previous one gives the same numbers."""

from __future__ import annotations

import shutil
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from bitrank_trainer import OBJECTIVES, NoHook, Task, TrainSettings, evaluate, train
from tiny_problem import batch, batches

OBJECTIVE = OBJECTIVES["classification"]
SETTINGS = TrainSettings(steps=30, learning_rate=1e-2, log_every=5, eval_every=5, checkpoint_every=7)


class Stop(Exception):
    """Simulates a killed process."""


def run(
    make: Any, folder: Path, stop_after: int | None = None
) -> tuple[dict[str, torch.Tensor], list[str], float | None]:
    """Trained parameters, messages about damage, and the best score."""
    model, messages = make("classification"), []

    def limited(skip: int) -> Any:
        yield from batches(skip) if stop_after is None else islice(batches(skip), stop_after)
        raise Stop

    def validate() -> dict[str, float]:
        return evaluate(model, [batch(n) for n in range(30, 34)], OBJECTIVE, "cpu").metrics

    def emit(event: Any) -> None:
        if event["event"] == "damaged_checkpoint":
            messages.append(event["message"])

    progress = train(model, Task(OBJECTIVE, limited, validate), NoHook(), SETTINGS, folder, emit)
    return dict(model.state_dict()), messages, progress.best_score


@pytest.fixture(scope="module")
def straight(make: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    return run(make, tmp_path_factory.mktemp("straight"))[0]


@pytest.fixture(scope="module")
def stopped(make: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run killed after step 23, with the checkpoints of steps 14 and 21."""
    folder = tmp_path_factory.mktemp("stopped")
    with pytest.raises((Stop, RuntimeError)):
        run(make, folder, stop_after=23)
    assert [path.name for path in sorted(folder.glob("step-*"))] == ["step-00000014", "step-00000021"]
    return folder


def assert_same(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    for name, tensor in expected.items():
        assert torch.equal(got[name], tensor), name


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "flipped":
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :])
    else:
        path.write_bytes(content[: int(len(content) * float(how))])


HOW = ["missing", "flipped", "0", "0.01", "0.5", "0.99"]


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", ["state.safetensors", "progress.json", "digest.json"])
def test_damaged_checkpoint_falls_back_to_the_previous_one(
    make: Any, straight: Any, stopped: Path, tmp_path: Path, name: str, how: str
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(stopped, folder)
    damage(folder / "step-00000021" / name, how)
    got, messages, _ = run(make, folder)
    assert_same(got, straight)
    assert len(messages) == 1
    assert "step-00000021 is damaged" in messages[0]
    assert messages[0].endswith("training continues from step-00000014")


@pytest.mark.parametrize("how", HOW)
def test_damaged_best_weights_invalidate_the_checkpoint(
    make: Any, straight: Any, stopped: Path, tmp_path: Path, how: str
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(stopped, folder)
    newest = max(folder.glob("best-*"))
    damage(newest, how)
    got, messages, _ = run(make, folder)
    assert_same(got, straight)
    assert newest.name in messages[0]


def test_two_damaged_checkpoints_restart_training(
    make: Any, straight: Any, stopped: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(stopped, folder)
    for place in folder.glob("step-*"):
        damage(place / "state.safetensors", "0.5")
    got, messages, _ = run(make, folder)
    assert_same(got, straight)
    assert messages[0].count("is damaged") == 2
    assert messages[0].endswith("training starts from the beginning")


def test_partially_written_checkpoint_is_ignored(
    make: Any, straight: Any, stopped: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(stopped, folder)
    shutil.copytree(folder / "step-00000021", folder / ".making")
    (folder / "step-00000021/state.safetensors").unlink()
    got, _, _ = run(make, folder)
    assert_same(got, straight)


def test_finished_run_keeps_one_checkpoint_and_its_best_weights(make: Any, tmp_path: Path) -> None:
    run(make, tmp_path)
    assert len(list(tmp_path.glob("step-*"))) == len(list(tmp_path.glob("best-*"))) == 1


@pytest.mark.parametrize("failing", ["best-00000020.tmp", "state.safetensors"])
def test_failed_write_leaves_the_previous_checkpoint_and_no_unfinished_file(
    make: Any,
    straight: dict[str, torch.Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    failing: str,
) -> None:
    from bitrank_trainer import checkpoints

    flush = checkpoints._flush

    def full(path: Path) -> None:
        if path.name == failing and (failing.startswith("best") or list(tmp_path.glob("step-*"))):
            raise OSError(28, "No space left on device")
        flush(path)

    monkeypatch.setattr(checkpoints, "_flush", full)
    with pytest.raises(OSError, match="No space left"):
        run(make, tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert "step-00000007" in names
    assert not [name for name in names if name.endswith(".tmp") or name.startswith(".making")]
    monkeypatch.setattr(checkpoints, "_flush", flush)
    trained, messages, _ = run(make, tmp_path)
    assert messages == []
    assert_same(trained, straight)


def test_new_checkpoints_stay_after_all_earlier_ones_were_damaged(
    make: Any, stopped: Path, straight: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    """Training starts again, and a second kill continues from what it has written since."""
    folder = tmp_path / "copy"
    shutil.copytree(stopped, folder)
    for place in folder.glob("step-*"):
        (place / "state.safetensors").write_bytes(b"damaged")
    with pytest.raises((Stop, RuntimeError)):
        run(make, folder, stop_after=16)
    assert [path.name for path in sorted(folder.glob("step-*"))] == ["step-00000007", "step-00000014"]
    found, messages, _ = run(make, folder)
    assert messages == []
    assert_same(found, straight)
