"""At budgets with many bytes an arm gets no rank that the start of its adapters has no directions for."""

from __future__ import annotations

import pytest
import torch
from bitrank.planning.budget import Sizes, parse_budget, sizes_of
from bitrank.planning.equal_bytes import fit_arm
from bitrank.spec.configs import find_config
from bitrank.spec.inits import COMPONENTS, INITS
from bitrank.spec.make_spec import make_spec
from bitrank.spec.profiles import PROFILES
from bitrank_adapters import AdapterScale, GradientStart, ranks_by_variance
from torch import Tensor


@pytest.fixture(scope="module")
def minilm() -> Sizes:
    return sizes_of(make_spec(PROFILES["laptop"], "B-FP", "movie_sentences"))


@pytest.mark.parametrize(
    ("arm", "budget", "rank"),
    [
        ("B-Q4", "8bits", 131),
        ("EVA-Q4", "6bits", 62),
        ("EVA-Q4", "8bits", 64),
        ("LoRA-GA-Q4", "8bits", 131),
        ("B-Q4", "10bits", 199),
        ("LoRA-GA-Q4", "10bits", 192),
    ],
)
def test_rank_is_the_largest_that_fits_the_budget_and_the_start(
    minilm: Sizes, arm: str, budget: str, rank: int
) -> None:
    """MiniLM's matrices have 384 rows or more: 384 // 2 for LoRA-GA, and 128 // 2 for EVA."""
    fitted = fit_arm(find_config(arm), minilm, parse_budget(budget, minilm))
    assert set(fitted.ranks.values()) == {rank}


def test_matrices_of_the_largest_variance_may_get_twice_the_largest_rank_of_eva(minilm: Sizes) -> None:
    ranks = fit_arm(find_config("EVA-Q4"), minilm, parse_budget("16bits", minilm)).ranks
    shapes = {name: minilm.matrices[name].shape for name in ranks}
    first = next(iter(ranks))
    shares = {name: torch.full((COMPONENTS,), 1e-3) for name in ranks} | {first: torch.ones(COMPONENTS)}
    found = ranks_by_variance(shares, ranks, shapes)
    assert found[first] == 2 * ranks[first] == COMPONENTS


def test_the_gradient_start_takes_the_largest_rank_and_no_larger_one() -> None:
    shape = (12, 20)
    rank = INITS["lora-ga"].largest_rank(shape)

    def gradient(_: str) -> Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(0))

    start = GradientStart({"m": rank}, gradient, AdapterScale())
    assert start.split("m", torch.zeros(shape), lambda weight_OI: weight_OI).shape == shape
    with pytest.raises(ValueError, match="give it a rank of 6 or less"):
        GradientStart({"m": rank + 1}, gradient, AdapterScale()).split("m", torch.zeros(shape), lambda w: w)


def test_other_starts_take_the_rank_of_the_matrix() -> None:
    assert {name: init.largest_rank((400, 300)) for name, init in INITS.items()} == {
        **dict.fromkeys(INITS, 300),
        "eva": 64,
        "lora-ga": 150,
    }
