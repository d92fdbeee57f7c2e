"""Inputs of linear layers while a model's layers are replaced, from the first block to the last.

A replaced layer changes the inputs of the layers after it. A quantizer that gets these inputs reduces the
error that the layer will make (GPTQ, Frantar et al. 2023, quantizes block by block for this reason).

The model runs block by block on recorded arguments. Memory holds one hidden state per position, and the
second moments of one input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
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


@dataclass(frozen=True)
class LayerInputs:
    """The input that the layers ``names`` share, in the model with all replacements so far.

    ``moments_II`` is E[x xᵀ] over the calibration positions, (I, I) in fp32.
    """

    names: tuple[str, ...]
    moments_II: Tensor


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
    passes through the whole model. Layers that no batch reaches are left out; one that some batches reach,
    such as an expert, has the inputs of these. Raises :class:`QuantError` without batches and for inputs that
    are not finite.
    """
    if not batches:
        raise QuantError("the inputs of layers need one calibration batch or more, got none")
    recording = _Recording(model, [matrix.name for matrix in matrices])
    for batch in batches:
        recording.run(forward, batch)
    order = recording.order if recording.chained else []
    if order:
        walk = _Walk(model, recording.calls, [real(batch) for batch in batches])
        yield from walk.through({block: recording.groups(block) for block in order}, recording.entered)
    rest = [matrix for matrix in matrices if block_name(matrix.name) not in order]
    if rest:
        for found in input_moments(model, batches, forward, rest, real):
            for name, moments_II in found.items():
                yield LayerInputs((name,), moments_II)


class _Recording:
    """Arguments of the calls of all blocks, without hidden states except those of the first block.

    ``sharing`` has for each batch the called layers among ``names``, in the order of their calls, each with
    the first layer that got the same input.
    """

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        self._model = model
        self._blocks = block_names(model)
        self._names = [name for name in names if block_name(name) in self._blocks]
        self.sharing: list[dict[str, str]] = []
        self.order: list[str] = []
        self.chained = True
        self.calls: list[dict[str, BlockCall]] = []
        self.entered: list[Tensor] = []

    def run(self, forward: Callable[[nn.Module, Any], object], batch: Any) -> None:
        """Record one pass of the model."""
        calls: dict[str, BlockCall] = {}
        last: list[Tensor] = []
        inputs: dict[str, Tensor] = {}  # of the layers of one block, kept so that no two have one identity
        sharing: dict[str, str] = {}

        def keep(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            hidden = hidden_argument(args, kwargs)
            self.chained = self.chained and name not in calls and (not last or last[0] is hidden)
            if not last:
                self.entered.append(hidden)
            last[:] = [hidden_output(output)]
            calls[name] = BlockCall(*without_cache(args, kwargs), None).without_states()
            first: dict[int, str] = {}
            sharing.update({layer: first.setdefault(id(value), layer) for layer, value in inputs.items()})
            inputs.clear()

        with ExitStack() as hooks, torch.no_grad():
            hooks.enter_context(_watched(self._model, self._names, inputs.setdefault))
            for name in self._blocks:
                block = self._model.get_submodule(name)
                hook = block.register_forward_hook(
                    lambda _, args, kwargs, output, name=name: keep(name, args, kwargs, output),
                    with_kwargs=True,
                )
                hooks.callback(hook.remove)
            forward(self._model, batch)
        self.calls.append(calls)
        self.sharing.append(sharing)
        self.order = self.order or list(calls)
        self.chained = self.chained and list(calls) == self.order

    def groups(self, block: str) -> list[tuple[str, ...]]:
        """The layers of ``block`` in the order of their calls, by the input they share in every batch."""
        order: list[str] = []
        for called in self.sharing:
            place = 0
            for name in called:
                if name not in order:  # not called in the batches before: after the layer called before it
                    order.insert(place, name)
                place = order.index(name) + 1
        groups: dict[tuple[str | None, ...], list[str]] = {}
        for name in order:
            if block_name(name) == block:
                groups.setdefault(tuple(called.get(name) for called in self.sharing), []).append(name)
        return [tuple(layers) for layers in groups.values()]


class _Reached(Exception):
    """The last layer whose inputs are needed was called; the rest of the block is skipped."""


class _Walk:
    """Run blocks alone, on recorded arguments."""

    def __init__(
        self, model: nn.Module, calls: list[dict[str, BlockCall]], masks: list[Sequence[Tensor]]
    ) -> None:
        self._model, self._calls, self._masks = model, calls, masks

    def through(
        self, groups: Mapping[str, list[tuple[str, ...]]], states: list[Tensor]
    ) -> Iterator[LayerInputs]:
        """Walk from block to block; ``states`` are the hidden states before the first block, by batch.

        ``groups`` are the layers of each block that share an input.
        """
        for block, layers_of_block in groups.items():
            for layers in layers_of_block:
                moments_II = self._moments(block, states, layers[0])
                if moments_II is not None:
                    yield LayerInputs(layers, moments_II)
            states = self._outputs(block, states)

    def _outputs(self, block: str, states: list[Tensor]) -> list[Tensor]:
        module = self._model.get_submodule(block)
        with torch.no_grad():
            return [
                calls[block].on(module, hidden) for calls, hidden in zip(self._calls, states, strict=True)
            ]

    def _moments(self, block: str, states: list[Tensor], name: str) -> Tensor | None:
        """E[x xᵀ] of the layer ``name``; the rest of its block is skipped.

        None if no batch reaches it: replaced layers can send every position to other experts.
        """
        total_II, positions = torch.zeros(()), 0
        for calls, hidden, masks in zip(self._calls, states, self._masks, strict=True):
            reached: list[Tensor] = []

            def stop(_name: str, value: Tensor, reached: list[Tensor] = reached) -> None:
                reached.append(value)
                raise _Reached

            with suppress(_Reached), _watched(self._model, [name], stop), torch.no_grad():
                calls[block].on(self._model.get_submodule(block), hidden)
            if not reached:
                continue
            x_NI = _tokens(reached[0], masks)
            total_II = total_II.to(x_NI) + x_NI.T @ x_NI
            positions += len(x_NI)
        if not torch.isfinite(total_II).all():
            raise QuantError(
                f"the inputs of {name} on the calibration data are not finite; check weights and data"
            )
        return total_II / positions if positions else None


def _watched(model: nn.Module, names: Sequence[str], keep: Callable[[str, Tensor], object]) -> ExitStack:
    """Hooks that pass the name and the input of each layer to ``keep``."""

    def hook(name: str, args: tuple[Any, ...]) -> None:
        keep(name, args[0])  # a value returned to torch would replace the input

    hooks = ExitStack()
    for name in names:
        layer = model.get_submodule(name)
        handle = layer.register_forward_pre_hook(lambda _, args, name=name: hook(name, args))
        hooks.callback(handle.remove)
    return hooks


def _tokens(inputs: Tensor, masks: Sequence[Tensor]) -> Tensor:
    """Positions (N, I) in fp32, without padding; a layer with one vector per sequence has none."""
    return without_padding(inputs.detach().flatten(0, -2), masks).float()
