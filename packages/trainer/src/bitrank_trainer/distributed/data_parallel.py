"""Data-parallel training: one run in several processes, one device each, with identical optimizer steps.

Every batch is split by rows among the processes. The trainable parameters are small, so the model needs no
wrapper: their gradients are concatenated and summed once per step through Accelerate. PyTorch's
``DistributedDataParallel`` does not fit: it hooks into the forward pass of the whole model, which the fused
head bypasses, and it deadlocks when one process has no rows of a short batch. Each process weights its loss
by the whole batch, so the sum equals the single-process gradient up to floating-point summation order. All
processes receive the same sum; parameters, moments, clipping and pruned ranks therefore stay bit-identical
without further communication. Evaluation distributes whole batches and gathers their rows.
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
    """A single process; the base class of :class:`Joined`, which serves several processes."""

    count = 1
    rank = 0

    @property
    def first(self) -> bool:
        """Whether this process writes files."""
        return self.rank == 0

    @property
    def needed(self) -> bool:
        """Whether this process must run the model when only the first process uses the result."""
        return self.first

    def local_rows(self, batch: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """Rows of ``batch`` that this process computes; possibly none."""
        return batch

    def distribute_batches(self, batches: Iterable[T]) -> Iterator[tuple[T, bool]]:
        """Distribute whole ``batches`` among the processes; yield (batch, whether its result counts).

        A batch that does not count only keeps collective operations aligned with the other processes.
        """
        return ((batch, True) for batch in batches)

    def equalize_passes(self, parts: Sequence[T], spare: Callable[[], T]) -> Iterator[tuple[T, bool]]:
        """Yield (part, whether its result counts) for every pass over ``parts``.

        A part that does not count only keeps collective operations aligned with the other processes.
        ``spare`` makes one if ``parts`` is empty.
        """
        return ((part, True) for part in parts)

    def shard_base(self, model: nn.Module) -> None:
        """Shard the frozen base weights of ``model`` among the processes, if this class shards."""

    def sum_gradients(self, model: nn.Module, loss: Tensor) -> Tensor:
        """Sum trainable gradients over all processes, in place; return the sum of the scalar ``loss``."""
        return loss

    def agree(self, parameters: Iterable[nn.Parameter]) -> None:
        """Copy the first process's values of ``parameters`` to all processes, in place."""

    def broadcast(self, value: T) -> T:
        """Return the first process's ``value`` in every process."""
        return value

    def gather(self, value: T) -> list[T]:
        """Return ``value`` of every process, in the order of their ranks."""
        return [value]

    def wait(self) -> None:
        """Block until all processes have reached this call."""


ALONE = Processes()


class Joined(Processes):
    """One of ``count`` processes of a run, after :func:`join`."""

    def __init__(self, rank: int, count: int) -> None:
        self.rank, self.count = rank, count

    def local_rows(self, batch: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        # Batches are sorted by length, so a strided slice gives every process the same amount of work. The
        # slice keeps the batch's width: trimmed to its own longest row it would add new shapes, and every new
        # shape is compiled.
        return {key: value[self.rank :: self.count] for key, value in batch.items()}

    def distribute_batches(self, batches: Iterable[T]) -> Iterator[tuple[T, bool]]:
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
            # A parameter without gradient in every process keeps None: with zeros the optimizer would apply
            # weight decay to it.
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
    """Join the process group of a run on this machine; return this process's :class:`Processes`.

    ``rendezvous_file`` must not exist before the first process creates it. ``made`` is the class for several
    processes: :class:`Joined` or :class:`~bitrank_trainer.distributed.fully_sharded.Sharded`. After the call
    ``"cuda"`` is the GPU of this rank. All communication stays on the machine: rendezvous through the file,
    then the loopback interface (gloo) or NCCL. Raises :class:`TrainError` if ``device`` cannot serve
    ``count`` processes.
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
    """Destroy the process group; collective operations fail afterwards."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def check_devices(device: str, count: int) -> None:
    """Raise :class:`TrainError` unless ``count`` processes fit on ``device``: a GPU serves one process."""
    if device == "cpu":
        return
    gpus = torch.cuda.device_count() if device == "cuda" else 1
    if count > gpus:
        raise TrainError(
            f"{count} processes need {count} GPUs, one each, and this machine has {gpus} ({device}); "
            f"give {gpus} processes or fewer, or device=cpu"
        )
