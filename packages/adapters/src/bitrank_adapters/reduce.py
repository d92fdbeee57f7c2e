"""LoRA trained at a high rank and reduced at the end: each matrix keeps its largest singular directions.

After the last step every product s B A is replaced by its best approximation of a smaller rank. The ranks
follow from one order of all singular values of the model, as many as the numbers of a uniform rank allow
(train-then-reduce, a control for choosing ranks before training). Shapes do not change during training: the
directions left out are zero, and the file has the reduced factors alone.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor

from bitrank_adapters.errors import AdapterError
from bitrank_adapters.export import write_lora
from bitrank_adapters.lowrank import in_fp64, thin_svd
from bitrank_adapters.rank_hooks import FixedRanks, adapted, scale_of
from bitrank_adapters.scales import effective_scale
from bitrank_adapters.stored import STORED_BYTES, STORED_DTYPE, adapter_bytes, round_adapter

_ADAPTER = "default"


class ReducedRanks(FixedRanks):
    """Constant ranks, reduced after step ``total_steps`` to the numbers of a uniform ``target_r``.

    Raises :class:`AdapterError` if ``target_r`` is not below the rank of any adapter.
    """

    def __init__(self, model: PeftModel, target_r: int, total_steps: int) -> None:
        super().__init__(model)
        highest = max(super().ranks().values(), default=0)
        if not 1 <= target_r < highest:
            raise AdapterError(f"expected a rank from 1 to {highest - 1} to reduce to, got {target_r}")
        self._target, self._last = target_r, total_steps
        self._kept: dict[str, int] = {}

    def after_step(self, step: int) -> None:
        if step == self._last:
            self._reduce()

    def settled(self, step: int) -> bool:
        return step >= self._last

    def ranks(self) -> dict[str, int]:
        return dict(self._kept) or super().ranks()

    def state(self) -> tuple[dict[str, Tensor], str]:
        return {}, json.dumps({"kept": self._kept})

    def restore(self, tensors: dict[str, Tensor], text: str) -> None:
        self._kept = json.loads(text)["kept"]

    def stored_bytes(self) -> int:
        if not self._kept:
            return super().stored_bytes()
        left_out = 0
        for name, layer in adapted(self._model):
            numbers = layer.lora_A[_ADAPTER].weight.shape[1] + layer.lora_B[_ADAPTER].weight.shape[0]
            left_out += (layer.r[_ADAPTER] - self._kept[name]) * numbers
        return adapter_bytes(self._model) - STORED_BYTES * left_out

    def save(self, folder: Path) -> None:
        """Save a plain LoRA adapter (bf16) with the reduced rank and α of each matrix."""
        if not self._kept:
            super().save(folder)
            return
        factors = {}
        with self.as_stored():
            for name, layer in adapted(self._model):
                rank = self._kept[name]
                if rank:
                    down_RI = layer.lora_A[_ADAPTER].weight.detach()[:rank]
                    up_OR = layer.lora_B[_ADAPTER].weight.detach()[:, :rank]
                    factors[name] = (down_RI, up_OR * self._factor(layer, rank))
            write_lora(self._model, folder, factors, STORED_DTYPE)

    def _take_stored_form(self) -> None:
        """B is rounded as the file holds it: for the scale of the reduced rank."""
        if not self._kept:
            super()._take_stored_form()
            return
        layers = [(layer, self._factor(layer, self._kept[name])) for name, layer in adapted(self._model)]
        with torch.no_grad():
            for layer, factor in layers:
                layer.lora_B[_ADAPTER].weight.mul_(factor)
            round_adapter(self._model)
            for layer, factor in layers:
                layer.lora_B[_ADAPTER].weight.div_(factor)

    def _factor(self, layer: torch.nn.Module, rank: int) -> float:
        """The scale during training relative to that of an adapter of ``rank``."""
        return effective_scale(layer) / scale_of(self._model).of(rank)

    def _reduce(self) -> None:
        found = {}
        for name, layer in adapted(self._model):
            up_OR, down_RI = layer.lora_B[_ADAPTER].weight, layer.lora_A[_ADAPTER].weight
            found[name] = thin_svd(in_fp64(up_OR.detach()), in_fp64(down_RI.detach()), up_OR.device)
        sizes = {name: len(f.left_OR) + f.right_RI.shape[1] for name, f in found.items()}
        values = {name: effective_scale(layer) * found[name].values_R for name, layer in adapted(self._model)}
        self._kept = kept_ranks(values, sizes, self._target * sum(sizes.values()))
        with torch.no_grad():
            for name, layer in adapted(self._model):
                rank, factors = self._kept[name], found[name]
                root_R = factors.values_R[:rank].sqrt()
                for parameter in (layer.lora_A[_ADAPTER].weight, layer.lora_B[_ADAPTER].weight):
                    parameter.zero_()
                layer.lora_A[_ADAPTER].weight[:rank] = root_R[:, None] * factors.right_RI[:rank]
                layer.lora_B[_ADAPTER].weight[:, :rank] = factors.left_OR[:, :rank] * root_R


def kept_ranks(values: dict[str, Tensor], sizes: dict[str, int], numbers: int) -> dict[str, int]:
    """Ranks by matrix: the largest singular ``values`` (descending per matrix) whose ``numbers`` fit.

    A direction of a matrix takes ``sizes[name]`` numbers. One that does not fit ends its matrix, and smaller
    ones of other matrices may still fit. Directions of value 0 are not kept.
    """
    order = sorted(
        (-float(value), name, place)
        for name, values_R in values.items()
        for place, value in enumerate(values_R)
        if value > 0
    )
    kept, left, ended = dict.fromkeys(values, 0), numbers, set[str]()
    for _, name, _place in order:
        if name in ended or sizes[name] > left:
            ended.add(name)
            continue
        kept[name] += 1
        left -= sizes[name]
    return kept
