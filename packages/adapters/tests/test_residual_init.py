"""A stored matrix plus its adapter is closer to the weight than the stored matrix before_error.

The product is computed by PEFT's own forward pass.
"""

from __future__ import annotations

import pytest
import torch
from bitrank_adapters import (
    SCALE_POLICIES,
    AdaLora,
    AdapterError,
    AdapterScale,
    ResidualStart,
    adapted,
    attach_adalora,
    attach_lora,
    uniform_ranks,
    weighted_norm,
)
from coarse_base import coarse, effective_weight, split_model


def pair_of(name, weight):
    source = torch.Generator().manual_seed(len(name))
    return torch.rand(weight.shape[0], generator=source) ** 3, torch.rand(
        weight.shape[1], generator=source
    ) ** 3


ATTACH = {
    "lora": lambda model, names: attach_lora(
        model, uniform_ranks(names, 6), scale=AdapterScale(3.0, "constant")
    ),
    "adalora": lambda model, names: attach_adalora(
        model, names, AdaLora(6, 2), total_steps=50, scale=AdapterScale(3.0, "constant")
    ),
}


@pytest.mark.parametrize("kind", ATTACH)
@pytest.mark.parametrize("rounds", [1, 5])
@pytest.mark.parametrize("weighted", [False, True])
def test_stored_weight_plus_adapter_has_the_reported_error(
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
        before_error, after_error = start.errors[name]
        assert before_error == pytest.approx(
            weighted_norm(before[name] - coarse(before[name]), pair), rel=1e-4
        )
        assert after_error < before_error
        assert weighted_norm(before[name] - effective_weight(layer), pair) == pytest.approx(
            after_error, rel=1e-3
        )


def test_error_of_one_round_equals_the_tail_of_the_spectrum(make, blocks) -> None:
    model, names = make("llama"), blocks["llama"]
    start = ResidualStart(uniform_ranks(names, 6))
    before = split_model(model, start, names)
    for name in names:
        tail = torch.linalg.svdvals(before[name] - coarse(before[name]))[6:].square().sum().sqrt()
        assert start.errors[name][1] == pytest.approx(float(tail), rel=1e-3)


@pytest.mark.parametrize("policy", SCALE_POLICIES)
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_product_is_the_best_approximation_under_every_scale(make, blocks, name: str, policy: str) -> None:
    model = make(name)
    ranks = {matrix: 2 + n % 4 for n, matrix in enumerate(blocks[name])}
    start = ResidualStart(ranks)
    before = split_model(model, start, blocks[name])
    adapted_model = attach_lora(model, ranks, scale=AdapterScale(3.0, policy))
    start.write(adapted_model)
    for matrix, layer in adapted(adapted_model):
        residual = before[matrix] - coarse(before[matrix])
        left, values, right = torch.linalg.svd(residual, full_matrices=False)
        rank = ranks[matrix]
        best = (left[:, :rank] * values[:rank]) @ right[:rank]
        assert torch.allclose(layer.get_delta_weight("default"), best, atol=1e-4 * float(values[0]))


def test_rows_of_a_residual_start_have_the_norm_of_default_rows(make) -> None:
    """In expectation; over 6 · 8 rows of 32 and 64 numbers the mean square is within a tenth."""
    names = [n for n, m in make("llama").named_modules() if type(m) is torch.nn.Linear and "layers" in n]
    plain = attach_lora(make("llama"), uniform_ranks(names, 6))
    rows = torch.cat([layer.lora_A["default"].weight.square().sum(1) for _, layer in adapted(plain)])
    model, start = make("llama"), ResidualStart(uniform_ranks(names, 6))
    split_model(model, start, names)
    model = attach_lora(model, uniform_ranks(names, 6))
    start.write(model)
    for _, layer in adapted(model):
        norms = layer.lora_A["default"].weight.norm(dim=1)
        assert torch.allclose(norms, norms[0].expand_as(norms), rtol=1e-4)
        assert float(norms[0].square()) == pytest.approx(float(rows.mean()), rel=0.1)


def test_more_rounds_never_increase_the_error_and_stop_early() -> None:
    weight = torch.randn(48, 32, generator=torch.Generator().manual_seed(0))
    calls = []

    def counted(weight_to_store):
        calls.append(weight_to_store)
        return coarse(weight_to_store)

    errors = []
    for rounds in (1, 2, 3, 5, 50):
        start = ResidualStart({"m": 4}, rounds=rounds)
        calls.clear()
        start.split("m", weight, counted)
        errors.append(start.errors["m"][1])
        assert len(calls) <= rounds
    assert errors == sorted(errors, reverse=True) and errors[1] < errors[0]
    assert len(calls) < 50  # it stopped early


def test_rising_error_selects_the_previous_round() -> None:
    """With a quantizer that returns zeros in round two, weight and factors of round one are used."""
    weight = torch.randn(16, 16, generator=torch.Generator().manual_seed(0))
    turns = []

    def failing_second_round(weight_to_store):
        turns.append(weight_to_store)
        return coarse(weight_to_store) if len(turns) == 1 else torch.zeros_like(weight_to_store)

    start = ResidualStart({"m": 2}, rounds=4)
    assert start.split("m", weight, failing_second_round) is weight
    assert len(turns) == 2


@pytest.mark.parametrize("kind", ATTACH)
def test_lossless_matrices_keep_the_default_initialization(make, blocks, kind: str) -> None:
    names = blocks["llama"]
    plain, other = ATTACH[kind](make("llama"), names), ATTACH[kind](make("llama"), names)
    start = ResidualStart(uniform_ranks(names, 6))
    for name in names:
        start.split(name, make("llama").get_submodule(name).weight, lambda weight_to_store: weight_to_store)
    start.write(other)
    for (name, a), (_, b) in zip(plain.named_parameters(), other.named_parameters(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("ranks", [{}, {"m": 0}])
def test_matrices_without_a_rank_stay_unchanged(ranks) -> None:
    weight = torch.randn(4, 4)
    assert ResidualStart(ranks).split("m", weight, coarse) is weight


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rounds": 0}, "1 or more, got 0"),
        ({"weights": {}}, "no row and column weights were given for 'm'"),
    ],
)
def test_invalid_options_raise_adapter_error(options, message: str) -> None:
    with pytest.raises(AdapterError, match=message):
        ResidualStart({"m": 2}, **options)


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ((torch.ones(3), torch.ones(4)), r"are for shape \(3, 4\), the matrix is \(4, 4\)"),
        ((torch.ones(4), torch.tensor([1.0, float("nan"), 1, 1])), "must be finite"),
        ((-torch.ones(4), torch.ones(4)), "not negative"),
    ],
)
def test_invalid_weights_raise_adapter_error(pair, message: str) -> None:
    with pytest.raises(AdapterError, match=message):
        ResidualStart({"m": 2}, weights={"m": pair}).split("m", torch.randn(4, 4), coarse)


def test_factors_without_an_adapter_raise_adapter_error(make, blocks) -> None:
    names = blocks["llama"]
    start = ResidualStart({names[0]: 2})
    start.split(names[0], torch.randn(32, 32), coarse)
    with pytest.raises(AdapterError, match="the model has no adapter there"):
        start.write(attach_lora(make("llama"), {names[1]: 2}))
