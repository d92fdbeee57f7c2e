"""What a model's ``config.json`` tells a planner: its matrices, its parameters, and the bytes that no plan changes. No weight is read.

So a model that does not fit this machine can be planned: 70 billion parameters take seconds and no memory to speak of.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from bitrank_quant import LeftOut, WeightMatrix, left_out, weight_matrices

from bitrank.forecast.stored_size import held_by_torch, rest_bytes
from bitrank.models.architectures import check_adaptable
from bitrank.models.meta_model import find_new_modules, meta_model


@dataclass(frozen=True)
class ModelShapes:
    """``matrices`` are all that a plan may name: tied heads follow their embedding, and a fresh head is trained whole.

    ``parameters`` counts shared ones once; ``fixed`` is what the base keeps beside the matrices (norms in fp32, the rest in the compute
    dtype), so that ``fixed`` + the matrices' bytes is the stored base. ``trained`` numbers of fresh heads come on top of adapters, in fp32.
    ``shared`` names the matrices that plain torch must hold, whatever the backend: other modules share or
    read their weights. ``left`` are the tensors that no plan can name.
    """

    matrices: list[WeightMatrix]
    parameters: int
    fixed: int
    trained: int
    model_type: str
    shared: frozenset[str]
    left: tuple[LeftOut, ...]


def model_shapes(place: str, kind: str, classes: int = 2, dtype: torch.dtype = torch.bfloat16) -> ModelShapes:
    """The outline of the model whose ``config.json`` is at ``place`` (that file, its folder, or a hub id) for tasks of ``kind``.

    Raises :class:`~bitrank.errors.UserError` when there is none, or it is an encoder's and ``kind`` is language modelling.
    """
    model = meta_model(place, kind, classes, dtype)
    check_adaptable(place, model)
    trained_modules = find_new_modules(model, place, kind)
    matrices = [m for m in weight_matrices(model) if m.tied_to is None and m.name not in trained_modules]
    return ModelShapes(
        matrices=matrices,
        parameters=sum(p.numel() for p in model.parameters()),
        fixed=rest_bytes(model, {m.name for m in matrices}, trained_modules),
        trained=sum(p.numel() for name in trained_modules for p in model.get_submodule(name).parameters()),
        model_type=model.config.model_type,
        shared=held_by_torch(model),
        left=tuple(left_out(model, trained_modules)),
    )
