"""Resolve the device, dtype and threads of a run from its spec, once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from bitrank_adapters import AdapterScale
from bitrank_quant import override_for
from bitrank_trainer import DTYPES, OBJECTIVES, Objective, choose_device, choose_dtype

from bitrank.errors import unknown
from bitrank.spec.run_spec import RunSpec
from bitrank.spec.task_kinds import task_kind


@dataclass(frozen=True)
class Compute:
    """Device, dtype and threads of a run.

    ``device`` and ``dtype`` are chosen for this machine if the spec leaves them open; ``threads`` None means
    as many as the environment or the cores allow.
    """

    device: str
    dtype_name: str
    threads: int | None

    @classmethod
    def of(cls, spec: RunSpec) -> Compute:
        device = choose_device(spec.device)
        return cls(device, choose_dtype(device) if spec.dtype == "auto" else spec.dtype, spec.threads)

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.dtype_name]


def scale_of(spec: RunSpec) -> AdapterScale:
    """Return the scale policy of the spec's adapters, with the scale of rank 8."""
    return AdapterScale(spec.adapter_scale, spec.scale_policy)


def check_here(specs: Iterable[RunSpec]) -> None:
    """Check that this machine has the device and the quant backend of every spec, before a run is opened.

    Raises :class:`~bitrank_trainer.TrainError` or :class:`~bitrank_quant.QuantError` for the first that it
    lacks.
    """
    different = {(spec.device, spec.dtype, spec.quant_backend): spec for spec in specs}
    for spec in different.values():
        compute = Compute.of(spec)
        override_for(spec.quant_backend, compute.device, compute.dtype)


def objective_of(spec: RunSpec) -> Objective:
    """Return the loss for the spec's kind of task; fused runs use the variant with a fused head."""
    return objective_for(spec.kind, spec.fused)


def objective_for(kind: str, fused: bool) -> Objective:
    """Return the loss for tasks of ``kind``.

    Raises :class:`~bitrank.errors.UserError` if the kind or its objective is not registered.
    """
    name = task_kind(kind).objective
    if name not in OBJECTIVES:
        raise unknown("objective", name, OBJECTIVES)
    return OBJECTIVES[name] if fused else OBJECTIVES[name].plain()
