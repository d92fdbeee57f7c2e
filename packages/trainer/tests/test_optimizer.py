"""Parameters cut during training keep their moments, also after an interruption."""

from __future__ import annotations

from itertools import islice

import pytest
import torch
from bitrank_trainer import OBJECTIVES, NoHook, Task, TrainSettings, evaluate, train
from bitrank_trainer.optimizer import follow, named_adamw
from tiny_problem import TinyClassifier, batch, batches
from torch import nn

OBJECTIVE = OBJECTIVES["classification"]
SETTINGS = TrainSettings(steps=20, learning_rate=1e-2, eval_every=5, checkpoint_every=3)
KEPT = torch.tensor([0, 3, 4])
CUT = {"up.weight": (1, KEPT), "down.weight": (0, KEPT), "gone": (0, torch.tensor([], dtype=torch.long))}


class Thin(TinyClassifier):
    """Two thin layers between pooling and head, and a parameter that the hook removes."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Sequential(Pair(), self.linear)

    @property
    def pair(self):
        return self.linear[0]


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.up, self.gone = (
            nn.Linear(8, 6, bias=False),
            nn.Linear(6, 8, bias=False),
            nn.Parameter(torch.zeros(2)),
        )

    def forward(self, x):
        return x + self.up(self.down(x)) + (self.gone.sum() if hasattr(self, "gone") else 0)


class Cutter(NoHook):
    """Keeps three of six ranks at step 8 and resizes the parameters accordingly."""

    def __init__(self, model, at: int = 8) -> None:
        self.model, self.at, self.cut, self._changes = model, at, False, None

    def after_step(self, step: int) -> None:
        if step == self.at:
            self._cut()

    def _cut(self) -> None:
        pair = self.model.pair
        pair.down.weight = nn.Parameter(pair.down.weight.detach()[KEPT])
        pair.up.weight = nn.Parameter(pair.up.weight.detach()[:, KEPT])
        del pair.gone
        self.cut, self._changes = True, {f"linear.0.{name}": how for name, how in CUT.items()}

    def resized(self):
        changes, self._changes = self._changes, None
        return changes

    def rescaled(self):
        return None

    def settled(self, step: int) -> bool:
        return step >= self.at

    def state(self):
        return {}, "cut" if self.cut else ""

    def restore(self, tensors, text: str) -> None:
        if text == "cut":
            self._cut()


class Stop(Exception):
    pass


def run(folder, stop_after=None):
    torch.manual_seed(0)
    model = Thin()

    def limited(skip: int):
        yield from batches(skip) if stop_after is None else islice(batches(skip), stop_after)
        raise Stop

    task = Task(
        OBJECTIVE,
        limited,
        lambda: evaluate(model, [batch(n) for n in range(30, 34)], OBJECTIVE, "cpu").metrics,
    )
    return model, train(model, task, Cutter(model), SETTINGS, folder, lambda event: None)


@pytest.mark.parametrize("stop_after", [5, 8, 9, 13, 19])
def test_resumed_run_with_resized_parameters_equals_uninterrupted_run(tmp_path, stop_after: int) -> None:
    straight, progress = run(tmp_path / "a")
    assert straight.pair.down.weight.shape == (3, 8) and not hasattr(straight.pair, "gone")
    with pytest.raises((Stop, RuntimeError)):
        run(tmp_path / "b", stop_after)
    resumed, again = run(tmp_path / "b")
    for (name, a), (other, b) in zip(straight.named_parameters(), resumed.named_parameters(), strict=True):
        assert name == other and torch.equal(a, b), name
    assert (progress.best_step, progress.best_score) == (again.best_step, again.best_score)


def test_moments_are_cut_like_their_parameters() -> None:
    torch.manual_seed(0)
    model = Thin()
    optimizer, hook = named_adamw(model, 1e-2, 0.0), Cutter(model)
    OBJECTIVE.loss(model, batch(0), "cpu").backward()
    optimizer.step()
    before = {
        name: {k: v.clone() for k, v in optimizer.state[p].items()} for name, p in model.named_parameters()
    }
    follow(model, optimizer, hook)  # without a cut nothing changes
    assert len(optimizer.param_groups[0]["params"]) == len(before)
    hook._cut()
    follow(model, optimizer, hook)
    now = dict(model.named_parameters())
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(p) for p in now.values()]
    assert optimizer.param_groups[0]["param_names"] == list(now)
    assert set(optimizer.state) == set(now.values())
    for name, parameter in now.items():
        for key in ("exp_avg", "exp_avg_sq"):
            axis, kept = CUT.get(name.removeprefix("linear.0."), (0, torch.arange(parameter.shape[0])))
            assert torch.equal(optimizer.state[parameter][key], before[name][key].index_select(axis, kept))
        assert optimizer.state[parameter]["step"] == 1


def test_multiplied_parameters_divide_their_moments() -> None:
    """w' = f·w with loss(w'/f): the steps after the change are those of w, times f."""
    plain, scaled = (nn.ParameterList([nn.Parameter(torch.tensor([1.0, -2.0]))]) for _ in range(2))
    optimizers = [named_adamw(model, 0.1, 0.0) for model in (plain, scaled)]
    factor = 1.0
    for step in range(6):
        for model, optimizer, size in zip((plain, scaled), optimizers, (1.0, factor), strict=True):
            (model[0] / size - 3.0).square().sum().backward()
            optimizer.param_groups[0]["lr"] = 0.1 * size
            optimizer.step()
            optimizer.zero_grad()
        if step == 2:
            factor = 4.0
            scaled[0].data.mul_(factor)
            follow(scaled, optimizers[1], Multiplied({"0": factor}))
    assert torch.allclose(scaled[0] / factor, plain[0], atol=1e-5)


class Multiplied(NoHook):
    """Reports that parameters were multiplied by ``factors``."""

    def __init__(self, factors):
        self._factors = factors

    def rescaled(self):
        return self._factors
