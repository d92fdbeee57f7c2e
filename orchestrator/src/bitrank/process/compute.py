"""Resolve the device, dtype and threads of a run from its spec, once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from bitrank_adapters import AdapterScale
from bitrank_trainer import DTYPES, OBJECTIVES, PLAIN_OBJECTIVES, Objective, choose_device, choose_dtype

from bitrank.spec.run_spec import RunSpec


@dataclass(frozen=True)
class Compute:
    """Device, dtype and threads of a run.

    ``device`` and ``dtype`` are chosen for this machine if the spec leaves them open; ``threads`` None means
    all cores.
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


def objective_of(spec: RunSpec) -> Objective:
    """Return the loss for the spec's kind of task; fused runs use the variant with a fused head."""
    return (OBJECTIVES if spec.fused else PLAIN_OBJECTIVES)[spec.kind]
