"""Data-parallel training with a sharded frozen base (fully sharded data parallel, Zhao et al. 2023).

Each process keeps its shard of the weights of every transformer block. A block is gathered for its forward
and backward pass and resharded afterwards. Trainable parameters, embeddings, head and buffers are replicated,
and gradients are summed as in :class:`~bitrank_trainer.distributed.data_parallel.Joined`. PyTorch's
``fully_shard`` does the work directly, because Accelerate disables its plugin on a CPU.

Running a block is a collective operation, so all processes must run it the same number of times. A process
with fewer micro-batches adds passes of weight zero, and results that only the first process uses are computed
by all.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

import torch
from torch import nn

from bitrank_trainer.distributed.data_parallel import Joined
from bitrank_trainer.errors import TrainError

T = TypeVar("T")

_CODES = (torch.uint8, torch.int8)
_BLOCK = re.compile(r"(?:^|\.)(?:layers?|h|blocks?)\.\d+$")


def _outermost_blocks(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The blocks of ``model`` by name; a block of T5 has a list of layers, which are parts of it."""
    found: list[tuple[str, nn.Module]] = []
    for name, module in model.named_modules():  # a block comes before its parts
        if _BLOCK.search(name) and not any(name.startswith(f"{outer}.") for outer, _ in found):
            found.append((name, module))
    return found


class Sharded(Joined):
    """One of several processes that shard the frozen base."""

    @property
    def needed(self) -> bool:
        return True

    def shard_base(self, model: nn.Module) -> None:
        """Shard the frozen weights of every block of ``model``, in place.

        They must be floating-point parameters of one dtype per block. Raises :class:`TrainError` if the model
        has no block, or a block has no weight that can be sharded.
        """
        from torch.distributed.fsdp import fully_shard

        blocks = _outermost_blocks(model)
        if not blocks:
            raise TrainError("the model has no transformer blocks to share out; train it without shard")
        for name, block in blocks:
            _check(name, block)
        for _, block in blocks:
            fully_shard(
                block,
                reshard_after_forward=True,
                # A parameter with fewer numbers than processes, such as AdaLoRA's count of ranks, would be
                # empty in some of them, and hooks read it between passes.
                ignored_params={p for p in block.parameters() if p.requires_grad or p.numel() < self.count},
            )

    def distribute_batches(self, batches: Iterable[T]) -> Iterator[tuple[T, bool]]:
        for group in _groups(batches, self.count):
            yield group[self.rank % len(group)], self.rank < len(group)

    def equalize_passes(self, parts: Sequence[T], spare: Callable[[], T]) -> Iterator[tuple[T, bool]]:
        most = max(self.gather(len(parts)))
        yield from ((part, True) for part in parts)
        for _ in range(most - len(parts)):
            yield (parts[0] if parts else spare()), False


def _groups(batches: Iterable[T], size: int) -> Iterator[Sequence[T]]:
    rest = iter(batches)
    while group := list(islice(rest, size)):
        yield group


def _check(name: str, block: nn.Module) -> None:
    """Raise :class:`TrainError` if ``block`` holds quantized codes or no floating-point weight.

    Codes are decoded before the product and are no floating-point parameters: ``fully_shard`` would silently
    shard nothing.
    """
    frozen = [p for p in block.parameters() if not p.requires_grad and p.ndim == 2]
    codes = [b for b in block.buffers() if b.dtype in _CODES]
    if not frozen or codes or not all(torch.is_floating_point(p) for p in frozen):
        raise TrainError(
            f"only weights that are multiplied as they are stored can be shared out, and those of {name} are "
            "decoded first: "
            "take a 16-bit base (B-FP) with dtype=bf16, or train it without shard"
        )
