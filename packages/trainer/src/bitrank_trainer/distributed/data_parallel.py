"""One run in several processes, each on its own device: every batch is shared out, and all take the same step.

What is trained is small, so there is no wrapper around the model: gradients are laid end to end and summed once a step, through
Accelerate. PyTorch's ``DistributedDataParallel`` would hook into the forward pass of the whole model, which the fused head does not
take, and would wait for ever for a process whose share of a short batch is empty. Each process weighs its rows by the whole batch,
so the sum is the gradient that one process would have, to float summation; the same sum everywhere keeps weights, moments, clipping
and pruned ranks equal to the bit without further words. Sequences to judge are dealt out batch by batch and their rows gathered.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from bitrank_trainer.errors import TrainError
from bitrank_trainer.optimizer import trainable

T = TypeVar("T")


class Processes:
    """One process alone: all rows are its own, and nobody else is to be asked. :class:`Joined` is the form for several."""

    count = 1
    rank = 0

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    @property
    def needed(self) -> bool:
        """Whether this process must run the model where only the first one's answer is kept."""
        return self.first

    def mine(self, batch: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """This process's rows of ``batch``; there may be none."""
        return batch

    def deal(self, batches: Iterable[T]) -> Iterator[tuple[T, bool]]:
        """Every so many of ``batches``, so that each goes to one process; False with one that is run only to keep step with others."""
        return ((batch, True) for batch in batches)

    def even(self, parts: Sequence[T], spare: Callable[[], T]) -> Iterator[tuple[T, bool]]:
        """The passes to make of ``parts``; False with one made only to keep step with others, from ``spare`` if there is no part."""
        return ((part, True) for part in parts)

    def share_out(self, model: nn.Module) -> None:
        """Keep of the frozen base what falls to this process, if the run wants it so."""

    def sum_gradients(self, model: nn.Module, loss: Tensor) -> Tensor:
        """Replace the gradients of what is trained of ``model`` by their sums over all processes; the sum of the scalar ``loss``."""
        return loss

    def agree(self, parameters: Iterable[nn.Parameter]) -> None:
        """Give everybody the first process's values of ``parameters``."""

    def broadcast(self, value: T) -> T:
        """The first process's ``value``."""
        return value

    def gather(self, value: T) -> list[T]:
        """``value`` of every process, in the order of their ranks."""
        return [value]

    def wait(self) -> None:
        """Go on when all are here."""


ALONE = Processes()


class Joined(Processes):
    """One of ``count`` processes of a run, after :func:`join`."""

    def __init__(self, rank: int, count: int) -> None:
        self.rank, self.count = rank, count

    def mine(self, batch: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        # Batches are sorted by length: every so many rows give all the same amount of work. Shares keep the batch's width: cut to their
        # own longest row they would be as many shapes as lengths, and each is compiled anew.
        return {key: value[self.rank :: self.count] for key, value in batch.items()}

    def deal(self, batches: Iterable[T]) -> Iterator[tuple[T, bool]]:
        return ((batch, True) for batch in islice(batches, self.rank, None, self.count))

    def sum_gradients(self, model: nn.Module, loss: Tensor) -> Tensor:
        from accelerate.utils import reduce

        parameters = list(trainable(model).values())
        here = torch.tensor([p.grad is not None for p in parameters], device=loss.device, dtype=torch.float32)
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        whole = torch.cat([loss.float().view(1), here, *(grad.float().flatten() for grad in grads)])
        loss_1, here_P, flat = reduce(whole, "sum").split([1, len(here), len(whole) - len(here) - 1])
        pieces = flat.split([p.numel() for p in parameters])
        for parameter, there, piece in zip(parameters, here_P.tolist(), pieces, strict=True):
            # Nobody's gradient stays none, or the optimizer would decay what one process leaves alone.
            parameter.grad = piece.view_as(parameter).to(parameter.dtype) if there else None
        return loss_1[0]

    def agree(self, parameters: Iterable[nn.Parameter]) -> None:
        from accelerate.utils import broadcast

        broadcast([parameter.detach() for parameter in parameters])

    def broadcast(self, value: T) -> T:
        from accelerate.utils import broadcast_object_list

        values: list[T] = broadcast_object_list([value])
        return values[0]

    def gather(self, value: T) -> list[T]:
        from accelerate.utils import gather_object

        values: list[T] = gather_object([value])
        return values

    def wait(self) -> None:
        from accelerate import PartialState

        PartialState().wait_for_everyone()


def join(
    device: str, rank: int, count: int, rendezvous_file: Path, made: Callable[[int, int], Processes] = Joined
) -> Processes:
    """Meet the other processes of a run on this machine; ``rendezvous_file`` is a file that none of them has made yet.

    ``made`` is the form of the several: :class:`Joined`, or :class:`~bitrank_trainer.distributed.fully_sharded.Sharded`. Afterwards
    ``"cuda"`` is the GPU of this rank. Everything stays on the machine: processes find each other through the file and talk over the
    loopback interface (gloo), or NCCL's own paths. Raises :class:`TrainError` when ``device`` cannot serve so many.
    """
    if count == 1:
        return ALONE
    check_devices(device, count)
    from accelerate import PartialState

    where = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    os.environ.update({key: str(value) for key, value in where.items()})
    options: dict[str, Any] = {
        "init_method": rendezvous_file.absolute().as_uri(),
        "rank": rank,
        "world_size": count,
    }
    cpu = {"cpu": True, "backend": "gloo"} if device == "cpu" else {}
    PartialState(**cpu, **options)
    return made(rank, count)


def leave() -> None:
    """Part from the others; after this nothing may be asked of them."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def check_devices(device: str, count: int) -> None:
    """Raise :class:`TrainError` unless ``count`` processes can train on ``device`` at once: a GPU serves one of them."""
    if device == "cpu":
        return
    gpus = torch.cuda.device_count() if device == "cuda" else 1
    if count > gpus:
        raise TrainError(
            f"{count} processes need {count} GPUs, one each, and this machine has {gpus} ({device}); "
            f"give {gpus} processes or fewer, or device=cpu"
        )
