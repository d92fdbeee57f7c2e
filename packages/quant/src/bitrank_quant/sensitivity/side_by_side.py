"""Independent operations on several threads of a CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def side_by_side(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> list[Result]:
    """``[function(item) for item in items]`` without gradients, on ``workers`` threads.

    torch releases Python's lock while it computes. Set torch to one thread first: a result then does not
    depend on ``workers``, and no operation waits for threads that compute another one. Give 1 where
    ``function`` computes on an accelerator: MPS aborts the process when several threads use it.
    """

    @torch.no_grad()
    def one(item: Item) -> Result:
        return function(item)

    if workers <= 1:
        return [one(item) for item in items]
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(one, items))
