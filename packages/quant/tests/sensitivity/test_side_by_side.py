"""Operations side by side: the results of a loop, without gradients, and its errors."""

from __future__ import annotations

import threading

import pytest
import torch
from bitrank_quant.sensitivity import side_by_side


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_results_are_those_of_a_loop_in_its_order(workers: int) -> None:
    assert side_by_side(lambda item: item * item, range(50), workers) == [item * item for item in range(50)]


def test_as_many_items_as_workers_are_computed_at_the_same_time() -> None:
    meeting = threading.Barrier(3, timeout=60)  # breaks unless three threads wait at once
    places = side_by_side(lambda _: meeting.wait(), range(3), workers=3)
    assert sorted(places) == [0, 1, 2]


@pytest.mark.parametrize("workers", [1, 2])
def test_no_graph_is_built_in_any_thread(workers: int) -> None:
    weight = torch.ones(3, requires_grad=True)
    made = side_by_side(lambda factor: weight * factor, range(4), workers)
    assert not any(tensor.requires_grad for tensor in made)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_of_an_item_is_raised(workers: int) -> None:
    def refuse(item: int) -> int:
        if item == 2:
            raise ValueError("two")
        return item

    with pytest.raises(ValueError, match="two"):
        side_by_side(refuse, range(4), workers)
