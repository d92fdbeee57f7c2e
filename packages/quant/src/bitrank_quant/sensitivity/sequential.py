"""Inputs of linear layers while a model's layers are replaced, from the first block to the last.

A replaced layer changes the inputs of the layers after it. A quantizer that gets these inputs reduces the
error that the layer will make (GPTQ, Frantar et al. 2023, quantizes block by block for this reason). With the
inputs of the unchanged model beside them, it can also correct errors of earlier layers
(:func:`~bitrank_quant.quantizers.correction.corrected_weight`).

The model runs block by block on recorded arguments. Memory holds two hidden states per position, and the
inputs and second moments of one block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bitrank_quant.errors import QuantError
from bitrank_quant.matrices import WeightMatrix
from bitrank_quant.sensitivity.blocks import (
    BlockCall,
    block_name,
    block_names,
    hidden_argument,
    hidden_output,
    without_cache,
)
from bitrank_quant.sensitivity.inputs import input_moments
from bitrank_quant.sensitivity.replay import Real, without_padding

Inputs = dict[str, Tensor]  # by layer


@dataclass(frozen=True)
class LayerInputs:
    """Second moments of the inputs that the layers ``names`` share, over N calibration positions, in fp32.

    ``now_II`` is E[x̂ x̂ᵀ] of the inputs x̂ in the model with all replacements so far, ``cross_II`` E[x x̂ᵀ] with
    the inputs x of the unchanged model; None where the unchanged inputs are not known.
    """

    names: tuple[str, ...]
    now_II: Tensor
    cross_II: Tensor | None


def sequential_inputs(
    model: nn.Module,
    batches: Sequence[Any],
    forward: Callable[[nn.Module, Any], object],
    matrices: Sequence[WeightMatrix],
    real: Real = lambda batch: (),
) -> Iterator[LayerInputs]:
    """Yield the inputs of ``matrices`` in the order in which the model uses them.

    The caller replaces the layers of one item in ``model`` before it takes the next item.
    ``forward(model, batch)`` runs the model; ``real(batch)`` masks padding. Where blocks do not form a chain
    (each called once, with the output of the block before), and outside of blocks, the inputs come from
    passes through the whole model and ``cross_II`` is None. Layers that no batch reaches are left out. Raises
    :class:`QuantError` without batches and for inputs that are not finite.
    """
    if not batches:
        raise QuantError("the inputs of layers need one calibration batch or more, got none")
    recording = _Recording(model)
    for batch in batches:
        recording.run(forward, batch)
    order = recording.order if recording.chained else []
    if order:
        walk = _Walk(model, recording.calls, [real(batch) for batch in batches])
        yield from walk.through(order, recording.entered, [matrix.name for matrix in matrices])
    rest = [matrix for matrix in matrices if block_name(matrix.name) not in order]
    if rest:
        for found in input_moments(model, batches, forward, rest, real):
            for name, moments_II in found.items():
                yield LayerInputs((name,), moments_II, None)


class _Recording:
    """Arguments of the calls of all blocks, without hidden states except those of the first block."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.order: list[str] = []
        self.chained = True
        self.calls: list[dict[str, BlockCall]] = []
        self.entered: list[Tensor] = []

    def run(self, forward: Callable[[nn.Module, Any], object], batch: Any) -> None:
        """Record one pass of the model."""
        calls: dict[str, BlockCall] = {}
        last: list[Tensor] = []

        def keep(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            hidden = hidden_argument(args, kwargs)
            self.chained = self.chained and name not in calls and (not last or last[0] is hidden)
            if not last:
                self.entered.append(hidden)
            last[:] = [hidden_output(output)]
            calls[name] = BlockCall(*without_cache(args, kwargs), None).without_states()

        with ExitStack() as hooks, torch.no_grad():
            for name in block_names(self._model):
                block = self._model.get_submodule(name)
                hook = block.register_forward_hook(
                    lambda _, args, kwargs, output, name=name: keep(name, args, kwargs, output),
                    with_kwargs=True,
                )
                hooks.callback(hook.remove)
            forward(self._model, batch)
        self.calls.append(calls)
        self.order = self.order or list(calls)
        self.chained = self.chained and list(calls) == self.order


class _Reached(Exception):
    """The last layer whose inputs are needed was called; the rest of the block is skipped."""


class _Walk:
    """Run blocks alone, on recorded arguments."""

    def __init__(
        self, model: nn.Module, calls: list[dict[str, BlockCall]], masks: list[Sequence[Tensor]]
    ) -> None:
        self._model, self._calls, self._masks = model, calls, masks

    def through(self, order: Sequence[str], entered: list[Tensor], names: list[str]) -> Iterator[LayerInputs]:
        """Walk from block to block with two streams of hidden states: unchanged, and with replacements."""
        unchanged, now = entered, entered
        for block in order:
            inside = [name for name in names if block_name(name) == block]
            if not inside and now is unchanged:
                unchanged = now = self._outputs(block, unchanged)
                continue
            seen: list[Inputs] = []
            after = self._outputs(block, unchanged, inside, seen)
            for layers in _sharing(seen[0]):
                yield self._moments(block, now, layers, seen)
            now, unchanged = self._outputs(block, now), after

    def _outputs(
        self, block: str, states: list[Tensor], names: Sequence[str] = (), seen: list[Inputs] | None = None
    ) -> list[Tensor]:
        """Outputs of ``block`` by batch; the inputs of its layers ``names`` are appended to ``seen``."""
        outputs = []
        for calls, hidden in zip(self._calls, states, strict=True):
            inputs: Inputs = {}
            with self._watched(names, inputs), torch.no_grad():
                outputs.append(calls[block].on(self._model.get_submodule(block), hidden))
            if seen is not None:
                seen.append(inputs)
        return outputs

    def _moments(
        self, block: str, states: list[Tensor], layers: tuple[str, ...], seen: list[Inputs]
    ) -> LayerInputs:
        """Moments of the input that ``layers`` share now; ``seen`` are the inputs of the unchanged model."""
        name, positions = layers[0], 0
        now_II = cross_II = torch.zeros(())
        batches = zip(self._calls, states, self._masks, seen, strict=True)
        for calls, hidden, masks, unchanged in batches:
            inputs: Inputs = {}
            watched = self._watched([name], inputs, stop=True)
            with suppress(_Reached), watched, torch.no_grad():
                calls[block].on(self._model.get_submodule(block), hidden)
            now_NI, before_NI = _tokens(inputs[name], masks), _tokens(unchanged[name], masks)
            now_II = now_II.to(now_NI) + now_NI.T @ now_NI
            cross_II = cross_II.to(now_NI) + before_NI.T @ now_NI
            positions += len(now_NI)
        found = LayerInputs(layers, now_II / positions, cross_II / positions)
        if not (torch.isfinite(found.now_II).all() and torch.isfinite(cross_II).all()):
            raise QuantError(
                f"the inputs of {name} on the calibration data are not finite; check weights and data"
            )
        return found

    def _watched(self, names: Sequence[str], inputs: Inputs, stop: bool = False) -> ExitStack:
        """Hooks that put the inputs of layers into ``inputs``; with ``stop`` the first one ends the call."""

        def keep(name: str, value: Tensor) -> None:
            inputs[name] = value
            if stop:
                raise _Reached

        hooks = ExitStack()
        for name in names:
            layer = self._model.get_submodule(name)
            hook = layer.register_forward_pre_hook(lambda _, args, name=name: keep(name, args[0]))
            hooks.callback(hook.remove)
        return hooks


def _sharing(inputs: Inputs) -> list[tuple[str, ...]]:
    """Layers grouped by their input tensor, in the order of their calls."""
    groups: dict[int, list[str]] = {}
    for name, value in inputs.items():
        groups.setdefault(id(value), []).append(name)
    return [tuple(names) for names in groups.values()]


def _tokens(inputs: Tensor, masks: Sequence[Tensor]) -> Tensor:
    """Positions (N, I) in fp32, without padding; a layer with one vector per sequence has none."""
    return without_padding(inputs.detach().flatten(0, -2), masks).float()
