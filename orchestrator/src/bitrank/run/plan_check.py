"""Check plan files against the shapes of their models, without weights, before runs are opened."""

from __future__ import annotations

from collections.abc import Sequence

from bitrank_adapters import check_ranks
from bitrank_quant import OVERRIDES, Float, WeightMatrix, block_matrices, parse_format, weight_matrices

from bitrank.errors import UserError
from bitrank.models.locate import locate
from bitrank.models.meta_model import find_new_modules, meta_model
from bitrank.process.compute import Compute
from bitrank.run.data import tokenised
from bitrank.run.plans import check_names
from bitrank.spec.configs import find_config
from bitrank.spec.inits import INITS
from bitrank.spec.rule_interface import Formats, Ranks
from bitrank.spec.run_spec import RunSpec


def check_plans(specs: Sequence[RunSpec]) -> None:
    """Raise :class:`~bitrank.errors.UserError`, or a package's error, if a plan does not fit its model."""
    distinct = {(spec.plan, spec.model, spec.task): spec for spec in specs if spec.plan}
    for spec in distinct.values():
        _check_plan(spec)


def _check_plan(spec: RunSpec) -> None:
    config = find_config(spec.config, spec.plan, spec.tuned)
    location, classes = locate(spec.model_source), len(tokenised(spec).classes)
    model = meta_model(location, spec.kind, classes, Compute.of(spec).dtype)
    trained = set(find_new_modules(model, location, spec.kind))
    matrices = weight_matrices(model)
    quantizable = [matrix for matrix in matrices if matrix.tied_to is None and matrix.name not in trained]
    formats = config.precision.assign_formats(quantizable)
    check_names(formats, [matrix.name for matrix in matrices], trained)
    for text in set(formats.values()):
        parse_format(text)
    _check_tied(formats, matrices, spec.quant_backend)
    blocks = block_matrices(model)
    ranks = config.rank.assign_ranks(blocks)
    shapes = {matrix.name: matrix.shape for matrix in blocks}
    check_ranks(ranks, shapes, sorted(trained), others_train=config.rank.trains_scales)
    config.rank.check_formats(formats, ranks)
    if INITS[spec.init].splits:
        _check_quantized(formats, ranks, spec.init)


def _check_tied(formats: Formats, matrices: Sequence[WeightMatrix], quant_backend: str) -> None:
    """Raise :class:`UserError` if modules that share one weight would have it in two formats."""
    replaced = OVERRIDES[quant_backend].format
    for matrix in matrices:
        if matrix.name not in formats or matrix.tied_to not in formats:
            continue
        pair = [parse_format(formats[name]) for name in (matrix.name, matrix.tied_to)]
        stored = {str(one) if isinstance(one, Float) else replaced or str(one) for one in pair}
        if len(stored) > 1:
            raise UserError(
                f"{matrix.name} shares its weight with {matrix.tied_to}: expected one format, got {pair[0]} "
                f"and {pair[1]}; give the format to {matrix.tied_to} and leave {matrix.name} out"
            )


def _check_quantized(formats: Formats, ranks: Ranks, init: str) -> None:
    """Raise :class:`UserError` if an adapted matrix stays in 16 bits: ``init`` takes a part out of each."""
    for name, rank in ranks.items():
        if rank and isinstance(parse_format(formats[name]), Float):
            raise UserError(
                f"init={init} starts adapters as parts of matrices whose rest is quantized, and {name} stays "
                "in 16 bits; give the matrix a format of fewer bits or rank 0, or give init=default"
            )
