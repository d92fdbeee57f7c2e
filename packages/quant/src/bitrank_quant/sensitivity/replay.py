"""Re-run a model from one of its blocks on, or one block alone.

The output of each block on the calibration batches is recorded once, in the compute dtype. To evaluate a
change inside one block, the blocks before it return their recorded outputs instead of computing, which halves
the cost on average. For the gradients inside one block nothing else is computed: the block is called with its
recorded inputs and receives the gradient of its output (:meth:`Replay.back_from_loss`,
:meth:`Replay.back_through`, :meth:`Replay.back_to_start`), so at most one block's graph exists at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bitrank_quant.errors import QuantError
from bitrank_quant.sensitivity.blocks import (
    BlockCall,
    block_name,
    block_names,
    hidden_argument,
    hidden_output,
    without_cache,
)
from bitrank_quant.sensitivity.divergence import (
    Divergence,
    TopPredictions,
    loss_and_divergence,
    top_predictions,
)
from bitrank_quant.sensitivity.side_by_side import side_by_side

Forward = Callable[[nn.Module, Any], tuple[Tensor, Tensor]]
"""(model, batch) → logits (positions, classes) and labels (positions,); −100 marks positions without loss."""

Real = Callable[[Any], Sequence[Tensor]]
"""batch → masks (B, T), true for tokens and false for padding; none: all are tokens.

A model with an encoder and a decoder has a mask for each, with different widths T.
"""


def without_padding(values_N: Tensor, masks: Sequence[Tensor]) -> Tensor:
    """Drop the entries of ``values_N`` at the padding of the mask with as many positions.

    Returned unchanged if no mask has as many, as with one vector per sequence.
    """
    mask = next((mask for mask in masks if mask.numel() == len(values_N)), None)
    return values_N if mask is None else values_N[mask.flatten()]


class Replay:
    """``model`` on ``batches``, re-run from any block on.

    ``order`` lists the blocks in execution order; ``units`` counts the positions that have a label; ``base``
    is the mean loss of the unchanged model in nats. ``chained`` is true if each block is called once, with
    the output of the block before it. The loss then depends on a block only through the next one, and
    gradients can be passed from block to block. Other block arguments (masks, positions) count as constants.

    ``blocks`` names the modules to use as blocks instead of the model's layers, for instance a whole body if
    only the head changes. ``real`` masks padding for statistics over positions (:meth:`tokens_of`).
    ``workers`` batches are computed at the same time where no block is skipped
    (:func:`~bitrank_quant.sensitivity.side_by_side.side_by_side`). Raises :class:`QuantError` if there is no
    batch, or if the loss is not finite.
    """

    def __init__(
        self, model: nn.Module, batches: Sequence[Any], forward: Forward, blocks: Sequence[str] | None = None,
        real: Real = lambda batch: (), workers: int = 1,
    ) -> None:  # fmt: skip
        if not batches:
            raise QuantError(
                "there is nothing to measure on: expected one calibration batch or more, got none"
            )
        self.model, self.batches, self._forward, self._workers = model, batches, forward, workers
        self._real = [real(batch) for batch in batches]
        self._now: Sequence[Tensor] = ()
        named = block_names(model) if blocks is None else blocks
        self._blocks = {name: model.get_submodule(name) for name in named}
        self.order: list[str] = []
        self.chained, self.units, total = True, 0, 0.0
        self._given: list[dict[str, BlockCall]] = []
        self._predictions: list[TopPredictions] = []
        with torch.no_grad():
            for batch in batches:
                self._given.append({})
                with self._watching(self._given[-1]):
                    logits_NC, labels_N = forward(model, batch)
                self._predictions.append(top_predictions(logits_NC))
                self.units += _count(labels_N)
                total += float(_loss(logits_NC, labels_N))
        self.base = total / self.units if self.units else float("nan")
        if not torch.isfinite(torch.tensor(self.base)):
            raise QuantError(
                f"the model's loss on the calibration data is {self.base}: expected a finite number; "
                "check weights and data"
            )

    def tokens_of(self, values_N: Tensor) -> Tensor:
        """Drop the entries of ``values_N`` at padding positions of the current batch."""
        return without_padding(values_N, self._now)

    def block_of(self, matrix: str) -> str | None:
        """The block that contains ``matrix``; None for embeddings and modules after the blocks."""
        block = block_name(matrix)
        return block if block in self._blocks else None

    def evaluate_from(self, block: str | None, first: bool = False) -> tuple[float, float]:
        """Mean loss, and mean divergence from the unchanged model's predictions, in nats.

        Computes everything from ``block`` on; with None, only the modules after the last block. With
        ``first`` the whole model is computed. See :mod:`~bitrank_quant.sensitivity.divergence`.
        """
        if first or not self.order:
            parts = side_by_side(self._compared, range(len(self.batches)), self._workers)
        else:
            with torch.no_grad():
                pairs = zip(self._predictions, self._from(block), strict=True)
                parts = [_compared(kept, *computed) for kept, computed in pairs]
        units = sum(count for _, _, count in parts)
        loss = sum(loss for loss, _, _ in parts)
        divergence = sum(divergence for _, divergence, _ in parts)
        return loss / units, divergence / units

    def divergence(self) -> Divergence:
        """Divergence from the unchanged model's predictions by batch, computing the whole model."""
        parts = side_by_side(self._compared, range(len(self.batches)), self._workers)
        return Divergence(tuple(part for _, part, _ in parts), tuple(count for _, _, count in parts))

    def _compared(self, number: int) -> tuple[float, float, int]:
        """Loss, divergence and labels of one batch, computing the whole model."""
        return _compared(self._predictions[number], *self._forward(self.model, self.batches[number]))

    def losses(self) -> Iterator[tuple[Tensor, int]]:
        """Summed loss in nats and number of labels per batch, computing only the modules after the blocks."""
        for logits_NC, labels_N in self._from(None):
            yield _loss(logits_NC, labels_N), _count(labels_N)

    def back_from_loss(self) -> list[Tensor]:
        """Back-propagate the summed loss to the output of the last block: the gradient there, per batch."""
        found, last = [], self.order[-1]
        for batch, given, real in zip(self.batches, self._given, self._real, strict=True):
            self._now = real
            outputs = {name: given[name].output for name in self.order}
            leaf = hidden_output(outputs[last]).detach().requires_grad_()
            with self._handing_out({**outputs, last: _with_states(outputs[last], leaf)}):
                self._back(batch)
            found.append(_gradient(leaf))
        return found

    def back_through_all(self) -> None:
        """Back-propagate the summed loss through the whole model, to leaves inserted by forward hooks."""
        for batch, real in zip(self.batches, self._real, strict=True):
            self._now = real
            self._back(batch)

    def back_through(self, block: str, gradients: Sequence[Tensor]) -> list[Tensor]:
        """Recompute ``block`` alone, and map gradients of its output to gradients of its input, per batch."""
        found = []
        for given, gradient, real in zip(self._given, gradients, self._real, strict=True):
            self._now = real
            leaf = given[block].hidden.detach().requires_grad_()
            given[block].on(self._blocks[block], leaf).backward(gradient)
            found.append(_gradient(leaf))
        return found

    def back_to_start(self, gradients: Sequence[Tensor]) -> None:
        """Back-propagate gradients of the first block's input to the leaves that hooks inserted before it."""
        entered: list[Tensor] = []
        first = self._blocks[self.order[0]]
        hook = first.register_forward_pre_hook(
            lambda _, args, kwargs: entered.append(hidden_argument(args, kwargs)), with_kwargs=True
        )
        try:
            steps = zip(self.batches, self._given, gradients, self._real, strict=True)
            for batch, given, gradient, real in steps:
                self._now = real
                with self._handing_out({name: given[name].output for name in self.order}):
                    self._forward(self.model, batch)
                if (states := entered.pop()).requires_grad:  # false if nothing before the blocks has a hook
                    states.backward(gradient)
        finally:
            hook.remove()

    def _back(self, batch: Any) -> None:
        logits_NC, labels_N = self._forward(self.model, batch)
        logits_NC.backward(_loss_gradient(logits_NC.detach(), labels_N))

    def _from(self, block: str | None) -> Iterator[tuple[Tensor, Tensor]]:
        skipped = self.order if block is None else self.order[: self.order.index(block)]
        for batch, given in zip(self.batches, self._given, strict=True):
            with self._handing_out({name: given[name].output for name in skipped}):
                yield self._forward(self.model, batch)

    @contextmanager
    def _watching(self, given: dict[str, BlockCall]) -> Iterator[None]:
        def keep(name: str) -> Callable[..., None]:
            def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
                if name not in self.order:
                    self.order.append(name)
                before = next(reversed(given.values()), None)
                follows = before is None or hidden_output(before.output) is hidden_argument(args, kwargs)
                self.chained = self.chained and follows and name not in given
                given[name] = BlockCall(*without_cache(args, kwargs), output)

            return hook

        hooks = [
            module.register_forward_hook(keep(name), with_kwargs=True)
            for name, module in self._blocks.items()
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @contextmanager
    def _handing_out(self, outputs: Mapping[str, Any]) -> Iterator[None]:
        modules = {name: self._blocks[name] for name in outputs}
        for name, module in modules.items():
            module.forward = _constant(outputs[name])  # type: ignore[method-assign]
        try:
            yield
        finally:
            for module in modules.values():
                del module.forward


def _loss(logits_NC: Tensor, labels_N: Tensor) -> Tensor:
    return F.cross_entropy(logits_NC.float(), labels_N, reduction="sum")


def _compared(kept: TopPredictions, logits_NC: Tensor, labels_N: Tensor) -> tuple[float, float, int]:
    """Summed loss and divergence in nats, and the number of labels."""
    return (*loss_and_divergence(kept, logits_NC, labels_N), _count(labels_N))


def _count(labels_N: Tensor) -> int:
    return int((labels_N >= 0).sum())


def _with_states(output: Any, states: Tensor) -> Any:
    return states if isinstance(output, Tensor) else (states, *output[1:])


def _gradient(leaf: Tensor) -> Tensor:
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad


def _loss_gradient(logits_NC: Tensor, labels_N: Tensor) -> Tensor:
    """∂/∂logits of the summed cross entropy in nats, over labels that are not negative: softmax − one-hot.

    Written out because autograd would keep three tensors of the logits' size, the largest of all activations.
    """
    gradient_NC = torch.softmax(logits_NC, dim=1, dtype=torch.float32)
    gradient_NC.scatter_add_(
        1, labels_N.clamp_min(0)[:, None], gradient_NC.new_full((len(labels_N), 1), -1.0)
    )
    gradient_NC[labels_N < 0] = 0.0
    return gradient_NC.to(logits_NC.dtype)


def _constant(output: Any) -> Callable[..., Any]:
    return lambda *_args, **_kwargs: output
