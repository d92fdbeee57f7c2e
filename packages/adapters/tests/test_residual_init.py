"""A stored matrix plus its adapter is nearer to the weight than the stored matrix alone, through PEFT's own forward pass."""

from __future__ import annotations

import pytest
import torch
from bitrank_adapters import (
    AdaLora,
    AdapterError,
    ResidualStart,
    adapted,
    attach_adalora,
    attach_lora,
    uniform_ranks,
    weighted_norm,
)


def coarse(weight):
    """A real quantizer in a line: three bits over the range of each row."""
    low, high = weight.amin(1, keepdim=True), weight.amax(1, keepdim=True)
    step = (high - low) / 7
    return ((weight - low) / step).round() * step + low


def split_model(model, start, names):
    """Do to plain linear layers what a quantizing loader does; the weights before."""
    before = {}
    for name in names:
        weight = model.get_submodule(name).weight
        before[name] = weight.detach().clone()
        weight.data = coarse(start.split(name, weight.detach(), coarse))
    return before


def pair_of(name, weight):
    source = torch.Generator().manual_seed(len(name))
    return torch.rand(weight.shape[0], generator=source) ** 3, torch.rand(
        weight.shape[1], generator=source
    ) ** 3


def held(layer):
    """What the adapted layer multiplies by, from PEFT's own forward pass."""
    return layer(torch.eye(layer.in_features)).T.detach()


ATTACH = {
    "lora": lambda model, names: attach_lora(model, uniform_ranks(names, 6), scale=3.0),
    "adalora": lambda model, names: attach_adalora(model, names, AdaLora(6, 2), total_steps=50, scale=3.0),
}


@pytest.mark.parametrize("kind", ATTACH)
@pytest.mark.parametrize("rounds", [1, 5])
@pytest.mark.parametrize("weighted", [False, True])
def test_stored_plus_adapter_is_what_the_start_promised(
    make, blocks, kind: str, rounds: int, weighted: bool
) -> None:
    model, names = make("llama"), blocks["llama"]
    weights = {name: pair_of(name, model.get_submodule(name).weight) for name in names} if weighted else None
    start = ResidualStart(uniform_ranks(names, 6), rounds=rounds, weights=weights)
    before = split_model(model, start, names)
    adapted_model = ATTACH[kind](model, names)
    start.write(adapted_model)
    for name, layer in adapted(adapted_model):
        pair = weights[name] if weights else None
        alone, repaired = start.errors[name]
        assert alone == pytest.approx(weighted_norm(before[name] - coarse(before[name]), pair), rel=1e-4)
        assert repaired < alone
        assert weighted_norm(before[name] - held(layer), pair) == pytest.approx(repaired, rel=1e-3)


def test_one_round_leaves_the_tail_of_the_spectrum(make, blocks) -> None:
    model, names = make("llama"), blocks["llama"]
    start = ResidualStart(uniform_ranks(names, 6))
    before = split_model(model, start, names)
    for name in names:
        tail = torch.linalg.svdvals(before[name] - coarse(before[name]))[6:].square().sum().sqrt()
        assert start.errors[name][1] == pytest.approx(float(tail), rel=1e-3)


def test_more_rounds_are_never_worse_and_stop_when_the_error_rises() -> None:
    weight = torch.randn(48, 32, generator=torch.Generator().manual_seed(0))
    asked = []

    def counted(held):
        asked.append(held)
        return coarse(held)

    errors = []
    for rounds in (1, 2, 3, 5, 50):
        start = ResidualStart({"m": 4}, rounds=rounds)
        asked.clear()
        start.split("m", weight, counted)
        errors.append(start.errors["m"][1])
        assert len(asked) <= rounds
    assert errors == sorted(errors, reverse=True) and errors[1] < errors[0]
    assert len(asked) < 50  # it stopped by itself


def test_an_error_that_rises_gives_the_round_before() -> None:
    """A store that loses everything the second time: the first round's weight and factors count."""
    weight = torch.randn(16, 16, generator=torch.Generator().manual_seed(0))
    turns = []

    def spoiled(held):
        turns.append(held)
        return coarse(held) if len(turns) == 1 else torch.zeros_like(held)

    start = ResidualStart({"m": 2}, rounds=4)
    assert start.split("m", weight, spoiled) is weight
    assert len(turns) == 2


@pytest.mark.parametrize("kind", ATTACH)
def test_what_lost_nothing_keeps_the_ordinary_start(make, blocks, kind: str) -> None:
    names = blocks["llama"]
    plain, other = ATTACH[kind](make("llama"), names), ATTACH[kind](make("llama"), names)
    start = ResidualStart(uniform_ranks(names, 6))
    for name in names:
        start.split(name, make("llama").get_submodule(name).weight, lambda held: held)
    start.write(other)
    for (name, a), (_, b) in zip(plain.named_parameters(), other.named_parameters(), strict=True):
        assert torch.equal(a, b), name


def test_matrices_without_a_rank_are_left_alone() -> None:
    weight = torch.randn(4, 4)
    assert ResidualStart({}).split("m", weight, coarse) is weight


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"rounds": 0}, "1 or more, got 0"),
        ({"weights": {}}, "no row and column weights were given for 'm'"),
    ],
)
def test_bad_words(words, message: str) -> None:
    with pytest.raises(AdapterError, match=message):
        ResidualStart({"m": 2}, **words)


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ((torch.ones(3), torch.ones(4)), r"are for shape \(3, 4\), the matrix is \(4, 4\)"),
        ((torch.ones(4), torch.tensor([1.0, float("nan"), 1, 1])), "must be finite"),
        ((-torch.ones(4), torch.ones(4)), "not negative"),
    ],
)
def test_bad_weights(pair, message: str) -> None:
    with pytest.raises(AdapterError, match=message):
        ResidualStart({"m": 2}, weights={"m": pair}).split("m", torch.randn(4, 4), coarse)


def test_a_start_without_an_adapter_is_said(make, blocks) -> None:
    names = blocks["llama"]
    start = ResidualStart({names[0]: 2})
    start.split(names[0], torch.randn(32, 32), coarse)
    with pytest.raises(AdapterError, match="the model has no adapter there"):
        start.write(attach_lora(make("llama"), {names[1]: 2}))
