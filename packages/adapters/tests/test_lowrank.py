"""The best low-rank matrix equals the truncated SVD, unweighted and weighted."""

from __future__ import annotations

import pytest
import torch
from bitrank_adapters import best_low_rank, weighted_norm
from hypothesis import given, settings
from hypothesis import strategies as st


def random_matrix_and_weights(rows: int, columns: int, seed: int):
    source = torch.Generator().manual_seed(seed)
    matrix = torch.randn(rows, columns, generator=source)
    return matrix, (
        torch.rand(rows, generator=source) ** 4 * 10,
        torch.rand(columns, generator=source) ** 4 * 10,
    )


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 24), st.integers(1, 24), st.data(), st.integers(0, 99), st.booleans())
def test_residual_norm_equals_the_tail_of_the_spectrum(
    rows: int, columns: int, data, seed: int, weighted: bool
) -> None:
    matrix, pair = random_matrix_and_weights(rows, columns, seed)
    rank = data.draw(st.integers(1, min(rows, columns)))
    weights = pair if weighted else None
    factors = best_low_rank(matrix, rank, weights)
    weighted_matrix = pair[0].sqrt()[:, None] * matrix * pair[1].sqrt() if weighted else matrix
    tail = torch.linalg.svdvals(weighted_matrix.double())[rank:].square().sum().sqrt()
    whole = weighted_norm(matrix, weights)
    assert weighted_norm(matrix - factors.product(), weights) == pytest.approx(float(tail), abs=2e-3 * whole)
    assert torch.allclose(factors.left_OR.T @ factors.left_OR, torch.eye(rank), atol=1e-5)
    assert torch.allclose(factors.right_RI @ factors.right_RI.T, torch.eye(rank), atol=1e-5)
    assert (factors.values_R.diff() <= 1e-6).all() and (factors.values_R >= 0).all()


def test_each_solution_is_best_in_its_own_norm() -> None:
    matrix, weights = random_matrix_and_weights(30, 20, 0)
    plain, fisher = best_low_rank(matrix, 4), best_low_rank(matrix, 4, weights)
    assert weighted_norm(matrix - fisher.product(), weights) < 0.9 * weighted_norm(
        matrix - plain.product(), weights
    )
    assert weighted_norm(matrix - plain.product()) < weighted_norm(matrix - fisher.product())


def test_zero_weights_still_approximate_the_matrix() -> None:
    matrix, (row, column) = random_matrix_and_weights(12, 9, 3)
    row[2], column[4] = 0.0, 0.0
    made = best_low_rank(matrix, 9, (row, column)).product()
    assert torch.allclose(made, matrix, atol=1e-3)
    nothing = best_low_rank(matrix, 3, (torch.zeros(12), torch.zeros(9))).product()
    assert torch.allclose(nothing, best_low_rank(matrix, 3).product(), atol=1e-5)
