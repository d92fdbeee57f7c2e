"""Measured tables: errors and moments of every matrix, and their files on disk."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from bitrank_quant import WeightMatrix
from bitrank_quant.sensitivity import FormatErrors, Moments
from safetensors.torch import load_file, save_file


@dataclass(frozen=True)
class Tables:
    """Measurements of a model.

    ``matrices`` are those measured; ``moments`` and ``errors`` are by matrix name. ``base`` is the
    unquantized model's loss in nats. ``seconds`` and ``peak_mib`` are the duration and peak memory of
    measuring.
    """

    matrices: list[WeightMatrix]
    moments: dict[str, Moments]
    errors: dict[str, dict[str, FormatErrors]]
    base: float
    seconds: float
    peak_mib: float


def write_tables(folder: Path, tables: Tables) -> None:
    tensors: dict[str, torch.Tensor] = {}
    plain: dict[str, Any] = {"base": tables.base, "seconds": tables.seconds, "peak_mib": tables.peak_mib}
    plain["matrices"] = [asdict(matrix) for matrix in tables.matrices]
    plain["moments"] = {
        name: _split(f"moments:{name}", moments, tensors) for name, moments in tables.moments.items()
    }
    plain["errors"] = {
        name: {fmt: _split(f"errors:{name}:{fmt}", errors, tensors) for fmt, errors in by_format.items()}
        for name, by_format in tables.errors.items()
    }
    save_file(tensors, folder / "tables.safetensors")
    (folder / "tables.json").write_text(json.dumps(plain))


def _split(key: str, value: Moments | FormatErrors, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Return the plain fields of a dataclass; its tensors are added to ``tensors`` under ``key:field``."""
    numbers = {}
    for name, part in vars(value).items():
        if isinstance(part, torch.Tensor):
            tensors[f"{key}:{name}"] = part.contiguous()
        else:
            numbers[name] = part
    return numbers


def read_tables(place: Path) -> Tables:
    plain = json.loads((place / "tables.json").read_text())
    tensors: dict[str, dict[str, Any]] = {}
    for key, tensor in load_file(place / "tables.safetensors").items():
        owner, _, name = key.rpartition(":")
        tensors.setdefault(owner, {})[name] = tensor
    matrices = [WeightMatrix(**{**m, "shape": tuple(m["shape"])}) for m in plain["matrices"]]
    moments = {
        name: Moments(**numbers, **tensors[f"moments:{name}"]) for name, numbers in plain["moments"].items()
    }
    errors = {
        name: {
            fmt: FormatErrors(**numbers, **tensors[f"errors:{name}:{fmt}"])
            for fmt, numbers in by_format.items()
        }
        for name, by_format in plain["errors"].items()
    }
    return Tables(matrices, moments, errors, plain["base"], plain["seconds"], plain["peak_mib"])
