"""Run a model again from one of its blocks on.

What each block gives for the calibration batches is kept (16 bits a hidden unit and block). To see what a change inside one block
does, the blocks before it need not be computed: they hand out what they gave before. On average that halves the cost.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bitrank_quant.errors import QuantError
from bitrank_quant.sensitivity.answers import Answers, answers, judge

Judged = Callable[[nn.Module, Any], tuple[Tensor, Tensor]]
"""A model and a batch → its logits (positions, classes), and the right class of each position: −100 where nothing is judged."""

_BLOCK = re.compile(r"^(?:.*?\.)?(?:layers?|h|blocks?)\.\d+(?=\.|$)")


class Replay:
    """``model`` on ``batches``, from any block on. ``order`` lists the block modules as the model runs them.

    ``blocks`` names the modules to take as blocks instead of the model's layers: a whole body, to change nothing but the head.
    Raises :class:`QuantError` when there is no batch, or the loss is not finite.
    """

    def __init__(self, model: nn.Module, batches: Sequence[Any], judged: Judged, blocks: Sequence[str] | None = None) -> None:
        if not batches:
            raise QuantError("there is nothing to measure on: expected one calibration batch or more, got none")
        self.model, self.batches, self._judged = model, batches, judged
        named = _layers(model) if blocks is None else blocks
        self._blocks = {name: model.get_submodule(name) for name in named}
        self.order: list[str] = []
        self._given: list[dict[str, Any]] = []
        self._answers: list[Answers] = []
        with torch.no_grad():
            for batch in batches:
                self._given.append({})
                with self._watching(self._given[-1]):
                    self._answers.append(answers(judged(model, batch)[0]))
        self.base = self.loss_from(None)
        if not torch.isfinite(torch.tensor(self.base)):
            raise QuantError(f"the model's loss on the calibration data is {self.base}: expected a finite number; check weights and data")

    def block_of(self, matrix: str) -> str | None:
        """The block that ``matrix`` lies in; None for embeddings and what comes after the blocks."""
        hit = _BLOCK.match(matrix)
        return hit[0] if hit and hit[0] in self._blocks else None

    def loss_from(self, block: str | None) -> float:
        """Mean loss in nats when everything from ``block`` on is computed (None: what comes after the last block)."""
        with torch.no_grad():
            parts = [(float(part), count) for part, count in self.losses_from(block)]
        return sum(part for part, _ in parts) / sum(count for _, count in parts)

    def judged_from(self, block: str | None, first: bool = False) -> tuple[float, float]:
        """Mean loss in nats, and the mean divergence of the answers from those of the model as it came (see
        :mod:`~bitrank_quant.sensitivity.answers`), when everything from ``block`` on is computed; ``first`` as in :meth:`losses_from`."""
        with torch.no_grad():
            answered = zip(self._answers, self._from(block, first), strict=True)
            parts = [(*judge(kept, logits_NC, labels_N), _count(labels_N)) for kept, (logits_NC, labels_N) in answered]
        units = sum(count for _, _, count in parts)
        return sum(loss for loss, _, _ in parts) / units, sum(far for _, far, _ in parts) / units

    def losses_from(self, block: str | None, first: bool = False) -> Iterator[tuple[Tensor, int]]:
        """Loss in nats, summed over what is judged, and how much that is, batch by batch; ``first`` computes everything, embeddings too."""
        for logits_NC, labels_N in self._from(block, first):
            yield F.cross_entropy(logits_NC.float(), labels_N, reduction="sum"), _count(labels_N)

    def _from(self, block: str | None, first: bool) -> Iterator[tuple[Tensor, Tensor]]:
        skipped = [] if first else self.order if block is None else self.order[: self.order.index(block)]
        for batch, given in zip(self.batches, self._given, strict=True):
            with self._handing_out({name: given[name] for name in skipped}):
                yield self._judged(self.model, batch)

    @contextmanager
    def _watching(self, given: dict[str, Any]) -> Iterator[None]:
        def keep(name: str) -> Callable[..., None]:
            def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
                if name not in self.order:
                    self.order.append(name)
                given[name] = output

            return hook

        hooks = [module.register_forward_hook(keep(name)) for name, module in self._blocks.items()]
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


def _count(labels_N: Tensor) -> int:
    return int((labels_N >= 0).sum())


def _layers(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_modules() if (hit := _BLOCK.match(name)) and hit[0] == name]


def _constant(output: Any) -> Callable[..., Any]:
    return lambda *_args, **_kwargs: output
