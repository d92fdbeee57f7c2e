"""Read a model's matrices, parameter count and plan-independent bytes from its ``config.json``.

No weight is read, so a model larger than this machine's memory can be planned: 70 billion parameters take
seconds and little memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from bitrank_quant import UnplannedTensor, WeightMatrix, left_out, weight_matrices

from bitrank.forecast.stored_size import held_by_torch, rest_bytes
from bitrank.models.architectures import check_adaptable
from bitrank.models.meta_model import find_new_modules, meta_model


@dataclass(frozen=True)
class ModelShapes:
    """Shapes and sizes of a model.

    ``matrices`` are all matrices that a plan may name: tied heads follow their embedding, and a new head is
    trained whole. ``parameters`` counts shared ones once. ``fixed`` is the bytes of the base besides the
    matrices (norms in fp32, the rest in the compute dtype), so ``fixed`` + the matrices' bytes is the stored
    base. ``trained`` counts the parameters of new heads, which are trained in fp32 in addition to adapters.
    ``shared`` names the matrices that the reference backend must store, whatever the configured backend,
    because other modules share or read their weights. ``heads`` are the embeddings whose weight a head
    shares. ``left`` are the tensors that no plan can name.
    """

    matrices: list[WeightMatrix]
    parameters: int
    fixed: int
    trained: int
    model_type: str
    shared: frozenset[str]
    heads: frozenset[str]
    left: tuple[UnplannedTensor, ...]


def model_shapes(place: str, kind: str, classes: int = 2, dtype: torch.dtype = torch.bfloat16) -> ModelShapes:
    """Return the shapes of the model whose ``config.json`` is at ``place``, for tasks of ``kind``.

    ``place`` is that file, its folder, or a hub id. Raises :class:`~bitrank.errors.UserError` if there is
    none, or if it describes an encoder and ``kind`` is language modelling.
    """
    model = meta_model(place, kind, classes, dtype)
    check_adaptable(place, model)
    trained_modules = find_new_modules(model, place, kind)
    every = weight_matrices(model)
    matrices = [m for m in every if m.tied_to is None and m.name not in trained_modules]
    return ModelShapes(
        matrices=matrices,
        parameters=sum(p.numel() for p in model.parameters()),
        fixed=rest_bytes(model, {m.name for m in matrices}, trained_modules),
        trained=sum(p.numel() for name in trained_modules for p in model.get_submodule(name).parameters()),
        model_type=model.config.model_type,
        shared=held_by_torch(model),
        heads=frozenset(m.tied_to for m in every if m.tied_to is not None and m.role == "head"),
        left=tuple(left_out(model, trained_modules)),
    )
