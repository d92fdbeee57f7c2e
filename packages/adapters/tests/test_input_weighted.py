"""The start of QERA and CLoQ equals the dense optimum of ‖(W − Q − L) X‖_F over all L of rank r."""

from __future__ import annotations

import pytest
import torch
from bitrank_adapters import AdapterError, ResidualStart, adapted, attach_lora, uniform_ranks
from bitrank_adapters.input_weighted import InputNorm
from coarse_base import coarse, effective_weight, split_model
from torch import Tensor

RANK = 5
SHAPES = [(24, 40), (40, 24), (32, 32)]


def error_and_inputs(shape: tuple[int, int], positions: int = 200) -> tuple[Tensor, Tensor]:
    """An error (O, I) and correlated inputs (I, N) in fp64, whose columns differ in scale."""
    source = torch.Generator().manual_seed(shape[0])
    mixing_II = torch.randn(shape[1], shape[1], generator=source, dtype=torch.float64)
    x_IN = mixing_II @ torch.randn(shape[1], positions, generator=source, dtype=torch.float64)
    x_IN *= torch.logspace(-1, 1, shape[1], dtype=torch.float64)[:, None]
    return torch.randn(shape, generator=source, dtype=torch.float64), x_IN


def truncated(matrix: Tensor, rank: int = RANK) -> Tensor:
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    return (left[:, :rank] * values[:rank]) @ right[:rank]


def start_of(error_OI: Tensor, x_IN: Tensor) -> Tensor:
    """The product of the adapter of rank 5, from the second moments of the inputs."""
    return InputNorm(x_IN @ x_IN.T / x_IN.shape[1]).best(error_OI, RANK).product().double()


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("shape", SHAPES)
def test_start_is_the_dense_optimum(shape: tuple[int, int]) -> None:
    """Eckart–Young on E X, solved for L by least squares: L X = (E X)_r."""
    error_OI, x_IN = error_and_inputs(shape)
    dense_OI = torch.linalg.lstsq(x_IN.T, truncated(error_OI @ x_IN).T).solution.T
    product_OI = start_of(error_OI, x_IN)
    assert relative(product_OI, dense_OI) < 1e-5
    least = torch.linalg.svdvals(error_OI @ x_IN)[RANK:].norm()
    assert float(((error_OI - product_OI) @ x_IN).norm()) == pytest.approx(float(least), rel=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_equations_of_qera_and_cloq_give_one_product(shape: tuple[int, int]) -> None:
    error_OI, x_IN = error_and_inputs(shape)
    powers_I, basis_II = torch.linalg.eigh(x_IN @ x_IN.T)
    root_II = basis_II @ torch.diag(powers_I.sqrt()) @ basis_II.T  # QERA: the symmetric root of R
    qera_OI = truncated(error_OI @ root_II) @ torch.linalg.inv(root_II)
    other_II = torch.diag(powers_I.sqrt()) @ basis_II.T  # CLoQ: Σ^½ Uᵀ with XᵀX = U Σ Uᵀ, X being (N, I)
    cloq_OI = (torch.linalg.inv(other_II) @ truncated(other_II @ error_OI.T)).T
    assert relative(start_of(error_OI, x_IN), qera_OI) < 1e-5
    assert relative(start_of(error_OI, x_IN), cloq_OI) < 1e-5


@pytest.mark.parametrize("shape", SHAPES)
def test_fewer_positions_than_inputs_still_give_the_smallest_error(shape: tuple[int, int]) -> None:
    error_OI, x_IN = error_and_inputs(shape, positions=12)
    least = torch.linalg.svdvals(error_OI @ x_IN)[RANK:].norm()
    left = (error_OI - start_of(error_OI, x_IN)) @ x_IN
    assert float(left.norm()) == pytest.approx(float(least), rel=1e-5)


def test_equal_inputs_of_one_scale_give_loftq() -> None:
    error_OI, _ = error_and_inputs((24, 40))
    product_OI = InputNorm(3.0 * torch.eye(40)).best(error_OI, RANK).product().double()
    assert relative(product_OI, truncated(error_OI)) < 1e-5


def moments_of(names: list[str], model) -> dict[str, Tensor]:
    found = {}
    for name in names:
        _, x_IN = error_and_inputs(tuple(model.get_submodule(name).weight.shape))
        found[name] = (x_IN @ x_IN.T / x_IN.shape[1]).float()
    return found


@pytest.mark.parametrize("rounds", [1, 3])
def test_stored_weight_plus_adapter_has_the_reported_output_error(make, blocks, rounds: int) -> None:
    model, names = make("llama"), blocks["llama"]
    moments = moments_of(names, model)
    start = ResidualStart(uniform_ranks(names, 6), rounds=rounds, inputs=moments.__getitem__)
    before = split_model(model, start, names)
    model = attach_lora(model, uniform_ranks(names, 6))
    start.write(model)
    for name, layer in adapted(model):
        norm = InputNorm(moments[name])
        unadapted, least = start.errors[name]
        assert unadapted == pytest.approx(norm.of(before[name] - coarse(before[name])), rel=1e-4)
        assert norm.of(before[name] - effective_weight(layer)) == pytest.approx(least, rel=1e-3)
        assert least < unadapted


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (torch.ones(4), r"square matrix, got shape \(4,\)"),
        (torch.full((4, 4), torch.nan), "not finite"),
        (torch.eye(3), "are for 3 inputs, the matrix has 4"),
    ],
)
def test_moments_that_do_not_fit_raise_adapter_error(second: Tensor, message: str) -> None:
    with pytest.raises(AdapterError, match=message):
        ResidualStart({"m": 2}, inputs=lambda name: second).split("m", torch.randn(4, 4), coarse)


def test_two_kinds_of_weights_at_once_are_refused() -> None:
    pair = {"m": (torch.ones(4), torch.ones(4))}
    with pytest.raises(AdapterError, match="not by both"):
        ResidualStart({"m": 2}, weights=pair, inputs=lambda name: torch.eye(4))
