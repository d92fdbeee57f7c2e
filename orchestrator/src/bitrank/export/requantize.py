"""Merge an adapter into quantized matrices, with codes chosen on calibration data.

W_q + scale · B A is between the values of its format, and the adapter's update is often smaller than half a
step, so that rounding returns W_q. A quantizer with calibration data keeps more of the update. Matrices are
replaced in the order of the model: the codes of each minimize the error at the inputs that it has in the
model merged so far. An update that is the same within each group of an affine format, as QA-LoRA's are, is
added to the minima instead, without any error. Memory holds one more set of codes while rounding is evaluated
for comparison, and the second moments of one input.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from bitrank_quant import (
    Affine,
    Float,
    InputMoments,
    QuantLinear,
    QuantWeight,
    WeightMatrix,
    find_quantizer,
    followers,
    parse_format,
    quantize,
    swap_weights,
    with_weight,
)
from bitrank_quant.sensitivity import LayerInputs, sequential_inputs
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from bitrank.errors import UserError
from bitrank.export.audit import MatrixAudit, matrix_audit
from bitrank.export.rebuild import Rebuilt
from bitrank.run.quantizers import ROUNDING
from bitrank.sensitivity.calibration import calibration_batches
from bitrank.sensitivity.fit_head import logits_and_labels
from bitrank.sensitivity.measure import real_positions

TOKENS = 6144  # tokens of training text, the calibration data
_WITHOUT_INPUTS = "search"  # quantizer of embeddings, and of layers that the calibration data do not reach


@dataclass(frozen=True)
class Requantized:
    """A merged model and the audit of its matrices: quantized ones, and those with an adapter.

    ``rounded`` are the validation metrics of the same merge by rounding; empty if it was rounded.
    """

    model: Any
    matrices: dict[str, MatrixAudit]
    rounded: dict[str, float] = field(default_factory=dict)


def requantize(
    rebuilt: Rebuilt,
    quantizer: str,
    formats: Mapping[str, str] | None = None,
    adapter_apart: bool = False,
    compare: bool = True,
) -> Requantized:
    """Store every matrix in ``formats`` (default: its own) by the reference backend, with its adapter merged.

    With ``adapter_apart`` the adapter stays attached, and only matrices whose format changes are encoded. The
    model of ``rebuilt`` changes in place. Matrices without a merged adapter whose format stays keep their
    values; those of other libraries are converted to the reference backend. ``compare`` evaluates the merge
    by rounding too. Raises :class:`UserError` if ``quantizer`` needs calibration data and the task has no
    training examples, and the quant package's error for an unknown quantizer.
    """
    uses_inputs = find_quantizer(quantizer).uses_moments
    merging = _Merging(rebuilt, quantizer, formats or {}, adapter_apart)
    with torch.no_grad():
        merging.convert()
        changed = bool(merging.remaining())
        rounded = merging.metrics_if_rounded() if compare and uses_inputs and changed else {}
        for inputs in merging.inputs() if uses_inputs and changed else ():
            for name in inputs.names:
                merging.replace(name, inputs)
        for name in merging.remaining():
            merging.replace(name)
        merging.audit_unchanged()
        if adapter_apart:
            return Requantized(rebuilt.model, merging.audits, rounded)
        model = rebuilt.model.unload()
        rebuilt.copy_heads(model)
    return Requantized(model, merging.audits, rounded)


class _Merging:
    """Replaces the layers of a rebuilt run one by one."""

    def __init__(
        self, rebuilt: Rebuilt, quantizer: str, formats: Mapping[str, str], adapter_apart: bool
    ) -> None:
        self._rebuilt, self._quantizer, self._apart = rebuilt, quantizer, adapter_apart
        names = dict.fromkeys([*rebuilt.layers(), *formats])
        self._layers = {name: rebuilt.layer(name) for name in names}
        self._formats = {name: formats.get(name, rebuilt.format(name)) for name in names}
        self._sharing = followers(rebuilt.inner)
        self.audits: dict[str, MatrixAudit] = {}

    def remaining(self) -> list[str]:
        """Layers whose values change and that are not replaced yet."""
        return [name for name in self._layers if name not in self.audits and self._changes(name)]

    def _changes(self, name: str) -> bool:
        merged = name in self._rebuilt.adapter.parts and not self._apart
        return merged or not self._keeps_format(name)

    def _keeps_format(self, name: str) -> bool:
        return self._formats[name] == self._rebuilt.format(name)

    def convert(self) -> None:
        """Store quantized layers of other libraries whose values stay with the reference backend."""
        for name, layer in self._layers.items():
            is_float = isinstance(parse_format(self._formats[name]), Float)
            reference = is_float or isinstance(layer, QuantLinear | nn.Embedding)
            if not reference and not self._changes(name):
                self._replace(name, ROUNDING)

    def metrics_if_rounded(self) -> dict[str, float]:
        """Validation metrics with every layer rounded to nearest; the model is as before afterwards."""
        names, inner = self.remaining(), self._rebuilt.inner
        places = [self._module_path(part) for name in names for part in self._parts(name)]
        before = {place: inner.get_submodule(place) for place in places}
        for name in names:
            self._swap_in(name, self._encode(name, self._rebuilt.stored_and_adapted(name)[1], ROUNDING, None))
        metrics = self._rebuilt.evaluate(self._rebuilt.model)
        swap_weights(inner, before)
        return metrics

    def inputs(self) -> Iterator[LayerInputs]:
        """The inputs of the layers to replace, one group of layers after the other."""
        task, device = self._rebuilt.data.task, self._rebuilt.compute.device
        train = task.splits["train"]
        if not len(train):
            raise UserError(
                f"{task.name} has no training example, and the quantizer {self._quantizer} needs calibration "
                f"data; give --quantizer {ROUNDING}"
            )
        mean = max(1.0, float(train.lengths_N.mean()))
        count = max(1, min(len(train), round(TOKENS / mean)))
        linear = [name for name in self.remaining() if not isinstance(self._layers[name], nn.Embedding)]
        return sequential_inputs(
            self._rebuilt.inner,
            calibration_batches(task, count),
            logits_and_labels(self._rebuilt.spec.kind, device),
            [WeightMatrix(name, "linear", None, shape_of(self._layers[name])) for name in linear],
            partial(real_positions, device=device),
        )

    def replace(self, name: str, inputs: LayerInputs | None = None) -> None:
        """Merge and encode the layer ``name``; without ``inputs``, by a quantizer that works without them."""
        needs_inputs = find_quantizer(self._quantizer).needs_moments
        quantizer = _WITHOUT_INPUTS if inputs is None and needs_inputs else self._quantizer
        self._replace(name, quantizer, inputs)

    def audit_unchanged(self) -> None:
        """Audit the matrices that keep their values, so that the audit lists every one of the file."""
        for name in self._rebuilt.layers():
            if name not in self.audits:
                stored_OI, adapted_OI = self._rebuilt.stored_and_adapted(name)
                exported_OI = stored_OI + self._kept_apart(name, stored_OI)
                three_OI = (stored_OI, adapted_OI, exported_OI)
                self.audits[name] = matrix_audit(self._rebuilt, name, self._formats[name], three_OI)

    def _replace(self, name: str, quantizer: str, inputs: LayerInputs | None = None) -> None:
        stored_OI, adapted_OI = self._rebuilt.stored_and_adapted(name)
        moments = None if inputs is None else InputMoments(inputs.moments_II)
        weight = self._encode(name, adapted_OI, quantizer, moments)
        self._swap_in(name, weight)
        exported_OI = weight.decode().float() + self._kept_apart(name, adapted_OI)
        three_OI = (stored_OI, adapted_OI, exported_OI)
        kept = self._keeps_format(name)
        self.audits[name] = matrix_audit(self._rebuilt, name, self._formats[name], three_OI, kept)

    def _encode(
        self, name: str, weight_OI: Tensor, quantizer: str, moments: InputMoments | None
    ) -> QuantWeight:
        """The stored form of ``weight_OI``, less the update of an adapter that stays apart."""
        if (exact := self._with_shifted_groups(name)) is not None:
            return exact
        fmt = parse_format(self._formats[name])
        weight_OI = weight_OI - self._kept_apart(name, weight_OI)
        tensors = quantize(weight_OI, fmt, quantizer, moments)
        shape = (weight_OI.shape[0], weight_OI.shape[1])
        return QuantWeight.of(tensors, fmt, shape, self._rebuilt.compute.dtype)

    def _with_shifted_groups(self, name: str) -> QuantWeight | None:
        """The stored form of ``name`` with its adapter in the minima of groups; None if that is inexact."""
        part, layer = self._rebuilt.adapter.parts.get(name), self._layers[name]
        if part is None or self._apart or not self._keeps_format(name) or not isinstance(layer, QuantLinear):
            return None
        weight = layer.quantized
        if not isinstance(weight.fmt, Affine):
            return None
        tensors = weight.fmt.add_to_groups(weight.tensors, part.product().to(layer.weight.device))
        if tensors is None:
            return None
        return QuantWeight.of(tensors, weight.fmt, weight.shape, weight.compute_dtype)

    def _kept_apart(self, name: str, like_OI: Tensor) -> Tensor:
        """The update of the matrix ``name`` by its adapter if that stays apart, else zero."""
        part = self._rebuilt.adapter.parts.get(name)
        if part is None or not self._apart:
            return torch.zeros((), device=like_OI.device)
        return part.product().to(like_OI)

    def _parts(self, name: str) -> list[str]:
        """The modules that share the weight of ``name``, itself first."""
        return [name, *self._sharing.get(name, [])]

    def _swap_in(self, name: str, weight: QuantWeight) -> None:
        layers = {self._module_path(part): self._rebuilt.layer(part) for part in self._parts(name)}
        swap_weights(self._rebuilt.inner, with_weight(weight, layers))

    def _module_path(self, part: str) -> str:
        """The module to replace: the layer ``part``, inside of its adapter if that stays apart."""
        wrapped = hasattr(self._rebuilt.inner.get_submodule(part), "base_layer")
        return f"{part}.base_layer" if self._apart and wrapped else part


def shape_of(layer: Any) -> tuple[int, int]:
    """(out, in) of a linear layer, a ``Conv1D`` or an embedding, in any backend."""
    if isinstance(layer, nn.Embedding):
        return layer.num_embeddings, layer.embedding_dim
    if isinstance(layer, Conv1D):
        return layer.nf, layer.nx
    return layer.out_features, layer.in_features
