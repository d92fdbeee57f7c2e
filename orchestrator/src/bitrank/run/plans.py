"""Precision and rank plan of a run: checked against the model, then the precision plan is applied."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from bitrank_adapters import AdapterStart, check_ranks
from bitrank_quant import (
    Applied,
    Encoding,
    UnplannedTensor,
    WeightMatrix,
    apply_precision,
    block_matrices,
    left_out,
    store_in_16_bits,
    weight_matrices,
)  # fmt: skip

from bitrank.errors import UserError, shortened
from bitrank.models.architectures import check_adaptable
from bitrank.models.load import Loaded
from bitrank.run.quantizers import encoder
from bitrank.spec.configs import Config
from bitrank.spec.inputs import check_inputs
from bitrank.spec.run_spec import RunSpec


@dataclass(frozen=True)
class Plans:
    """Format and rank by matrix name.

    ``quantizable`` are the matrices that accept a format: all except newly initialized heads and tied
    weights. ``left`` are the tensors that no plan can name.
    """

    formats: dict[str, str]
    ranks: dict[str, int]
    quantizable: list[WeightMatrix]
    left: list[UnplannedTensor]


def make_plans(config: Config, loaded: Loaded) -> Plans:
    """Assign formats and ranks to the matrices of a model by the rules of ``config``.

    Raises the adapters' error for a rank that does not fit its matrix, and :class:`~bitrank.errors.UserError`
    for a model without matrices that a plan can name.
    """
    config_of_model: Any = loaded.model.config
    check_adaptable(config_of_model.name_or_path, loaded.model)
    quantizable = [
        m for m in weight_matrices(loaded.model) if m.tied_to is None and m.name not in loaded.trained_modules
    ]
    blocks = block_matrices(loaded.model)
    formats, ranks = config.precision.assign_formats(quantizable), config.rank.assign_ranks(blocks)
    check_names(formats, [m.name for m in weight_matrices(loaded.model)], set(loaded.trained_modules))
    shapes = {m.name: m.shape for m in blocks}
    check_ranks(ranks, shapes, loaded.trained_modules, others_train=config.rank.trains_scales)
    config.rank.check_formats(formats, ranks)
    return Plans(formats, ranks, quantizable, left_out(loaded.model, loaded.trained_modules))


def store_base(
    spec: RunSpec,
    loaded: Loaded,
    formats: dict[str, str],
    init: AdapterStart,
    device: str,
    dtype: torch.dtype,
) -> dict[str, Applied]:
    """Load the base one matrix at a time and store each in its format of ``formats``.

    ``init`` may split a matrix into a base and an initial adapter; then only the base part is quantized, by
    the quantizer of ``spec``. The tensors that no plan can name are stored in 16 bits. Raises
    :class:`~bitrank.errors.UserError` when data or model changed since the spec was made.
    """
    applied = apply_precision(
        loaded.model,
        formats,
        quant_backend=spec.quant_backend,
        compute_dtype=dtype,
        device=device,
        fill=loaded.fill,
        encoding=Encoding(init.split, encoder(spec)),
    )
    loaded.fill_rest()
    store_in_16_bits(loaded.model, left_out(loaded.model, loaded.trained_modules))
    # All inputs are read now. A file that changed while it was read may be a mixture of two versions.
    check_inputs(spec)
    return applied


def check_names(formats: Mapping[str, str], names: Collection[str], trained: Collection[str]) -> None:
    """Raise :class:`UserError` for a format of a module that is not a quantizable matrix.

    All weights of a head in ``trained`` are trained, so they stay in fp32.
    """
    for name in formats:
        inside = next((head for head in trained if name == head or name.startswith(f"{head}.")), None)
        if inside is not None:
            raise UserError(
                f"the plan gives {name} the format {formats[name]}, but it is in the head {inside}, "
                "which is trained whole and is not quantized; remove it from precision"
            )
        if name not in names:
            near = difflib.get_close_matches(name[:200], names, n=3, cutoff=0.3) or sorted(names)[:3]
            raise UserError(
                f"the plan gives a format to {shortened(name)}, which this model lacks; "
                f"nearest: {', '.join(near)}"
            )
