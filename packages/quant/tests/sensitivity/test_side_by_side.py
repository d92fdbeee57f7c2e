"""Operations side by side: the results of a loop, without gradients, and its errors."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import astuple
from typing import Any

import pytest
import torch
from bitrank_quant import parse_format, weight_matrices
from bitrank_quant.sensitivity import Replay, measure_sensitivities, side_by_side
from torch import Tensor, nn


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


def test_measurements_do_not_depend_on_the_number_of_workers(make: Callable[..., Any]) -> None:
    model, formats = make("llama"), [parse_format(text) for text in ("int3-g64", "nf4-dq", "int8")]
    batches = [
        torch.randint(3, 96, (2, 8), generator=torch.Generator().manual_seed(seed)) for seed in range(3)
    ]

    def forward(model: nn.Module, ids_BT: Tensor) -> tuple[Tensor, Tensor]:
        return model(input_ids=ids_BT).logits[:, :-1].flatten(0, 1), ids_BT[:, 1:].flatten()

    def measured(workers: int) -> tuple[Any, ...]:
        replay = Replay(model, batches, forward, workers=workers)
        with torch.no_grad():
            model.lm_head.weight.mul_(1.01)
        divergence = replay.divergence(), replay.evaluate_from(None, first=True)
        with torch.no_grad():
            model.lm_head.weight.copy_(before)
        _, errors = measure_sensitivities(replay, weight_matrices(model), formats, "search", workers=workers)
        return *divergence, [astuple(one) for of in errors.values() for one in of.values()]

    before, threads = model.lm_head.weight.clone(), torch.get_num_threads()
    torch.set_num_threads(1)
    alone, together = measured(1), measured(3)
    torch.set_num_threads(threads)
    torch.testing.assert_close(together[2], alone[2], rtol=0, atol=0)
    assert together[:2] == alone[:2] and alone[0].mean > 0
