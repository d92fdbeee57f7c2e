"""Forward and backward passes recorded as CUDA graphs, one per shape of inputs.

A small model is bound by the host: it starts thousands of short kernels per step, one by one. A graph starts
them all at once. It repeats the recorded operations on fixed memory, so everything that changes from step to
step is copied to fixed tensors: the inputs, and the factor of the loss. Gradients are added to fixed tensors,
which are the ``grad`` of the parameters.

A shape is recorded at its second pass, once its memory is allocated and its kernels are loaded. The first
replay is compared with the plain pass of the same batch. A model whose operations cannot be recorded, or
differ from pass to pass, keeps its plain passes, and an event says why.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bitrank_trainer.distributed.data_parallel import ALONE, Processes
from bitrank_trainer.hooks import RankHook
from bitrank_trainer.model_inputs import Batch, LossOfInputs, on_device, tensor_of
from bitrank_trainer.objectives import Objective
from bitrank_trainer.optimizer import trainable
from bitrank_trainer.rng import random_states, restore_random_states

Key = tuple[tuple[str, tuple[int, ...]], ...]
Recorder = Callable[[Callable[[], None]], Callable[[], None]]
"""Records the operations of a function; returns a function that repeats them."""
# Most shapes recorded: each keeps its inputs, and a recording takes about as long as two passes.
_SHAPES = 64
# Largest difference of a replay from the plain pass, relative to the size of loss and gradient. Atomic sums
# and other kernels for padded batches change the last digits of 16-bit numbers; a wrong graph the first.
_DIFFERENCE = 0.05


def graphs_for(
    objective: Objective, device: str, hook: RankHook, processes: Processes = ALONE
) -> CudaGraphs | None:
    """Graphs for a training on ``device``, or None.

    There are none on other devices than CUDA, with several processes, with a hook that changes ranks, for an
    objective whose inputs are not apart from its operations, and with ``BITRANK_CUDA_GRAPHS=0``.
    """
    if device != "cuda" or processes is not ALONE or os.environ.get("BITRANK_CUDA_GRAPHS") == "0":
        return None
    return (
        CudaGraphs(objective, device) if isinstance(objective, LossOfInputs) and hook.is_constant() else None
    )


class Unrecordable(Exception):
    """Why the passes of a model are not replaced by a graph."""


@dataclass(frozen=True)
class _Recorded:
    """One graph with its fixed tensors; ``replay`` adds gradients and sets ``loss``.

    ``parameters`` are those that the loss reaches. Others get no gradient, so the optimizer leaves them
    alone.
    """

    parameters: Sequence[nn.Parameter]
    inputs: Mapping[str, Tensor]
    factor: Tensor
    loss: Tensor
    replay: Callable[[], None]


class CudaGraphs:
    """Passes of one model on ``device`` by graphs, where a shape of inputs repeats.

    The model's operations must not depend on the step: ranks that change need plain passes.
    """

    def __init__(self, objective: LossOfInputs, device: str, record: Recorder | None = None) -> None:
        self._objective, self._device = objective, device
        self._record = record or _Capture()
        self._recorded: dict[Key, _Recorded] = {}
        self._seen: set[Key] = set()
        self._gradients: dict[nn.Parameter, Tensor] = {}

    def add(self, model: nn.Module, batch: Batch, factor: Tensor) -> Tensor | None:
        """Add the gradients of ``factor`` · loss to the parameters; return the loss without its factor.

        Returns None, and adds nothing, if the shape of ``batch`` has no graph yet. Raises
        :class:`Unrecordable`, also before anything is added, if it cannot have one.
        """
        inputs = self._objective.inputs(model, batch)
        key = tuple((name, array.shape) for name, array in inputs.items())
        if (found := self._recorded.get(key)) is not None:
            for name, tensor in found.inputs.items():
                tensor.copy_(tensor_of(inputs[name], "cpu"))
            found.factor.copy_(factor)
            self._own_gradients(found.parameters)
            found.replay()
            return found.loss.clone()
        if key in self._seen and len(self._recorded) < _SHAPES:
            return self._first(key, model, on_device(inputs, self._device), factor.clone())
        self._seen.add(key)
        return None

    def _first(self, key: Key, model: nn.Module, fixed: Mapping[str, Tensor], factor: Tensor) -> Tensor:
        """Record the shape ``key``, and compare its first replay with the plain pass, which counts."""
        states = random_states(self._device)
        plain_loss, plain = self._differentiate(model, fixed, factor)
        if _differ(states, random_states(self._device)):
            restore_random_states(states)  # the plain pass that follows draws them again
            raise Unrecordable("its passes draw random numbers, such as dropout")
        expected = list(plain.values())
        if not _is_finite([plain_loss, *expected]):
            self._own_gradients(list(plain))
            torch._foreach_add_([self._gradients[parameter] for parameter in plain], expected)
            return plain_loss  # an overflow, with which nothing can be compared: recorded at a later pass
        recorded = self._new(model, fixed, factor, list(plain))
        self._own_gradients(recorded.parameters)
        gradients = [self._gradients[parameter] for parameter in plain]
        before = [gradient.clone() for gradient in gradients]
        recorded.replay()
        replayed = torch._foreach_sub(gradients, before)
        torch._foreach_copy_(gradients, before)
        differences = _relative([recorded.loss], [plain_loss]), _relative(replayed, expected)
        if not all(difference <= _DIFFERENCE for difference in differences):
            raise Unrecordable(f"a replay differs from the plain pass by {max(differences):.0%}")
        torch._foreach_add_(gradients, expected)
        self._recorded[key] = recorded
        return plain_loss

    def _new(
        self,
        model: nn.Module,
        fixed: Mapping[str, Tensor],
        factor: Tensor,
        parameters: Sequence[nn.Parameter],
    ) -> _Recorded:
        """Record a pass over ``fixed``, which adds its gradients to those of ``parameters``."""
        loss = torch.zeros((), device=self._device)
        gradients = [self._gradient(parameter) for parameter in parameters]

        def run() -> None:
            made, found = self._differentiate(model, fixed, factor)
            loss.copy_(made)
            torch._foreach_add_(gradients, [found[parameter] for parameter in parameters])

        try:
            replay = self._record(run)
        except Exception as error:  # noqa: BLE001 - libraries raise errors of many classes in a recording
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise Unrecordable(f"its operations cannot be recorded ({reason[:200]})") from None
        return _Recorded(parameters, fixed, factor, loss, replay)

    def _differentiate(
        self, model: nn.Module, inputs: Mapping[str, Tensor], factor: Tensor
    ) -> tuple[Tensor, dict[nn.Parameter, Tensor]]:
        """The loss, and the gradient of ``factor`` · loss of each parameter that the loss reaches.

        Not by ``backward``, which would bind gradients to the stream of a recording.
        """
        parameters = list(trainable(model).values())
        loss = self._objective.loss_of(model, inputs)
        found = torch.autograd.grad(loss * factor, parameters, allow_unused=True)
        pairs = zip(parameters, found, strict=True)
        return loss.detach(), {parameter: part for parameter, part in pairs if part is not None}

    def _gradient(self, parameter: nn.Parameter) -> Tensor:
        """The fixed gradient of ``parameter``."""
        if parameter not in self._gradients:
            self._gradients[parameter] = torch.zeros_like(parameter)
        return self._gradients[parameter]

    def _own_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Make the fixed tensors the gradients of ``parameters``, with the values that these have so far."""
        fresh = []
        for parameter in parameters:
            gradient = self._gradient(parameter)
            if parameter.grad is gradient:
                continue
            if parameter.grad is None:
                fresh.append(gradient)
            else:
                gradient.copy_(parameter.grad)
            parameter.grad = gradient
        if fresh:
            torch._foreach_zero_(fresh)


class _Capture:
    """Records on CUDA. All graphs share one memory pool, since their passes follow each other."""

    def __init__(self) -> None:
        self._pool: Any = None

    def __call__(self, run: Callable[[], None]) -> Callable[[], None]:
        _check_room()
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        graph, generator, stream = torch.cuda.CUDAGraph(), _generator(), torch.cuda.current_stream()
        state = generator.clone_state()
        try:
            # Other threads of the process, such as that of the memory meter, may use the device meanwhile.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                run()
        except BaseException:
            # A recording that fails leaves its stream current, its generator in recording mode, so that every
            # later draw would fail, and (torch before 2.13) its pool open, so that no memory is given back.
            torch.cuda.set_stream(stream)
            generator.graphsafe_set_state(state)
            with suppress(AttributeError, RuntimeError):
                torch._C._cuda_endAllocateToPool(stream.device_index, self._pool)
            raise
        return graph.replay


def _check_room() -> None:
    """Raise ``RuntimeError`` unless the device holds the memory of a pass twice.

    The pool of the graphs keeps it, and passes without a graph, such as those of validation, need it again.
    """
    _, total = torch.cuda.mem_get_info()
    peak, held = torch.cuda.max_memory_allocated(), torch.cuda.memory_allocated()
    if total < 2 * peak - held:
        raise RuntimeError(f"a pass takes {(peak - held) / 2**20:,.0f} MiB, which does not fit twice")


def _generator() -> torch.Generator:
    """The default generator of the current device."""
    return torch.cuda.default_generators[torch.cuda.current_device()]


def _differ(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> bool:
    return any(not torch.equal(before[name], after[name]) for name in before)


def _is_finite(tensors: Sequence[Tensor]) -> bool:
    return math.isfinite(_norm(tensors))


def _relative(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Norm of the difference over the norm of ``expected``; 0 if both are zero."""
    difference, size = _norm(torch._foreach_sub(list(found), list(expected))), _norm(expected)
    return difference / size if size else (0.0 if difference == 0 else float("inf"))


def _norm(tensors: Sequence[Tensor]) -> float:
    # In fp64: squares of gradients at a large loss scale overflow in fp32.
    return float(torch.stack(torch._foreach_norm(list(tensors), dtype=torch.float64)).norm())
