"""Forward and backward passes of one optimizer step, with recovery from out-of-memory errors.

After an out-of-memory error, the number of sequences per pass is halved and the step repeats from the same
parameters and the same random state: more and smaller passes over the same batch, with the same gradient up
to rounding (dropout draws other masks). The limit holds for the rest of the run and is saved in its
checkpoints.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from bitrank_trainer.checkpoints import Progress
from bitrank_trainer.cuda_graphs import CudaGraphs, Unrecordable
from bitrank_trainer.distributed.data_parallel import ALONE, Processes
from bitrank_trainer.errors import TrainError
from bitrank_trainer.loss_scale import Scaling
from bitrank_trainer.memory.meters import release_memory
from bitrank_trainer.memory.micro_batches import micro_batches
from bitrank_trainer.memory_errors import is_out_of_memory
from bitrank_trainer.model_inputs import Batch
from bitrank_trainer.objectives import Objective
from bitrank_trainer.optimizer import trainable
from bitrank_trainer.rng import random_states, restore_random_states

Emit = Callable[[dict[str, object]], None]


class Passes:
    """Computes gradients in passes of at most ``tokens`` padded tokens.

    None runs whole batches until an out-of-memory error sets a limit. ``graphs`` repeat passes of the same
    shape; without them, or after an out-of-memory error, passes run operation by operation.
    """

    def __init__(
        self,
        objective: Objective,
        device: str,
        tokens: int | None,
        scaling: Scaling,
        emit: Emit,
        processes: Processes = ALONE,
        graphs: CudaGraphs | None = None,
    ) -> None:
        self._objective, self._device, self._tokens, self._scaling, self._emit = (
            objective,
            device,
            tokens,
            scaling,
            emit,
        )
        self._processes, self._graphs = processes, graphs
        self._shape, self._by_graphs = (0, 0), False

    def gradient(self, model: nn.Module, batches: Sequence[Batch], progress: Progress) -> Tensor:
        """Store the gradient of the mean loss over ``batches`` in the parameters; return the detached loss.

        The mean is over all units that the objective counts (sequences or predicted tokens) in all
        ``batches`` together, regardless of micro-batches and processes. A mean of per-batch means would give
        tokens of short batches a larger weight. With several processes, each computes its own rows, and all
        receive the same sums.

        The parameters must have no gradient at the call. Raises :class:`TrainError` if one sequence alone
        does not fit, or no row of ``batches`` has a target.
        """
        states = random_states(self._device)
        while True:
            try:
                loss = self._all(model, batches, progress.micro_tokens or self._tokens)
                return self._processes.sum_gradients(model, loss)
            except Exception as error:
                # A process must not change its passes alone: the others would block in their next collective
                # operation.
                if not is_out_of_memory(error) or (
                    torch.distributed.is_available() and torch.distributed.is_initialized()
                ):
                    raise
                reason = str(error).strip().partition("\n")[0] or type(error).__name__
            # Outside the handler, because the traceback references the tensors of the failed pass.
            had_graphs = self._graphs is not None
            self._recover(model)
            if had_graphs:  # the step may fit without the memory that they keep
                self._plain_from_now(f"out of memory at step {progress.step}")
            else:
                self._cut(progress, reason)
            restore_random_states(states)

    def _all(self, model: nn.Module, batches: Sequence[Batch], tokens: int | None) -> Tensor:
        loss = torch.zeros((), device=self._device)
        total = sum(self._objective.weight(batch) for batch in batches)
        if not total:
            raise TrainError(
                "no sequence of this optimizer step has anything to predict: expected labels, or two tokens "
                "or more for a language model. Leave such sequences out"
            )
        for batch in batches:
            # A process without rows, or without a target in them, makes no pass.
            parts = [
                part
                for part in micro_batches(self._processes.local_rows(batch), tokens)
                if self._objective.weight(part)
            ]
            for part, counts in self._processes.equalize_passes(
                parts, partial(_spare, batch, self._objective)
            ):
                self._shape = part["input_ids"].shape
                weight = counts * self._objective.weight(part) / total
                loss += self._pass(model, part, weight)
        return loss

    def _pass(self, model: nn.Module, part: Batch, weight: float) -> Tensor:
        """Add the gradient of ``weight`` · loss to the parameters; return the detached product."""
        if (loss := self._by_graph(model, part, weight)) is not None:
            return loss * weight
        share = self._objective.loss(model, part, self._device) * weight
        self._scaling.backward(share)
        return share.detach()

    def _by_graph(self, model: nn.Module, part: Batch, weight: float) -> Tensor | None:
        """The loss, if a graph did the pass."""
        if self._graphs is None:
            return None
        try:
            loss = self._graphs.add(model, part, self._scaling.scaled(weight))
            if loss is not None and not self._by_graphs:
                self._by_graphs = True
                self._emit({"event": "cuda_graphs", "tags": {"cuda_graphs": "passes of repeated shapes"}})
            return loss
        except Unrecordable as error:
            reason = str(error)
        self._graphs = None
        self._plain_from_now(reason)
        return None

    def _plain_from_now(self, reason: str) -> None:
        message = f"no CUDA graphs: {reason}; the passes run operation by operation"
        self._emit({"event": "no_cuda_graphs", "message": message, "tags": {"cuda_graphs": message}})

    def _recover(self, model: nn.Module) -> None:
        self._graphs = None  # they keep the memory of their passes
        for parameter in trainable(model).values():
            parameter.grad = None
        gc.collect()
        if self._device == "cuda":
            torch.cuda.empty_cache()
        if self._device == "mps":
            torch.mps.empty_cache()
        release_memory()

    def _cut(self, progress: Progress, reason: str) -> None:
        rows, width = self._shape
        if rows < 2:
            raise TrainError(
                f"out of memory at step {progress.step}: one sequence of {width} tokens does not fit on "
                f"{self._device} ({reason[:200]}). "
                "Give shorter sequences (max_length), a smaller model or fewer bits, free memory, or take "
                "another device"
            )
        progress.micro_tokens = rows // 2 * width
        message = (
            f"out of memory at step {progress.step} with {rows} × {width} tokens: passes of at most "
            f"{progress.micro_tokens} tokens "
            "from here on, more of them, same gradient"
        )
        self._emit(
            {
                "event": "out_of_memory",
                "step": progress.step,
                "message": message,
                "reason": reason,
                "tags": {"out_of_memory": message},
            }
        )


def _spare(batch: Batch, objective: Objective) -> Batch:
    """One sequence of ``batch`` that has a target."""
    rows = (
        {key: value[row : row + 1] for key, value in batch.items()} for row in range(len(batch["input_ids"]))
    )
    return next(row for row in rows if objective.weight(row))
