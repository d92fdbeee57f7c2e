"""Fold a trained adapter into its base.

``merged`` replaces every matrix by W_q + scale · B A in the run's compute dtype, for transformers without
bitrank. ``quantized`` replaces it by q(W_q + scale · B A) in its own format; the audit gives the rounding
error.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from bitrank_quant import QuantLinear, parse_format, save_quantized, stored_bytes, stored_weight, to_reference
from torch import Tensor, nn

from bitrank.errors import UserError
from bitrank.export.audit import Audit, MatrixAudit, matrix_audit
from bitrank.export.padding import separate_padding
from bitrank.export.prepared import Options, Prepared
from bitrank.export.rebuild import Rebuilt


def prepare_merged(rebuilt: Rebuilt, options: Options) -> Prepared:
    """A 16-bit model for transformers, with every matrix replaced by W_q + scale · B A."""
    model, matrices = merge_into_16bit(rebuilt)
    return _prepared(rebuilt, options.target, model, matrices, model.save_pretrained)


def prepare_quantized(rebuilt: Rebuilt, options: Options) -> Prepared:
    """Codes and scales of every matrix in its own format, for :func:`bitrank_quant.load_quantized`.

    Raises :class:`UserError` when the base is in 16 bits.
    """
    model, matrices = merge_into_formats(rebuilt)

    def write(folder: Path) -> None:
        model.config.save_pretrained(folder)
        save_quantized(model, folder)

    return _prepared(rebuilt, options.target, model, matrices, write)


def _prepared(
    rebuilt: Rebuilt,
    target: str,
    model: Any,
    matrices: dict[str, MatrixAudit],
    write: Callable[[Path], object],
) -> Prepared:
    audit = Audit(target, rebuilt.metrics, rebuilt.evaluate(model), matrices, rebuilt.planned_bytes)
    padding = separate_padding(model, rebuilt.tokenizer, rebuilt.data.task)

    def write_all(folder: Path) -> None:
        write(folder)
        rebuilt.tokenizer.save_pretrained(folder)

    return Prepared(audit, stored_bytes(model).total, write_all, [padding] if padding else [])


def merge_into_16bit(rebuilt: Rebuilt) -> tuple[Any, dict[str, MatrixAudit]]:
    """A new 16-bit model with every matrix replaced by W_q + scale · B A."""
    weights_OI, audits = {}, {}
    for name in rebuilt.layers():
        stored_OI, wanted_OI = rebuilt.wanted(name)
        merged_OI = wanted_OI.to(rebuilt.compute.dtype)
        weights_OI[name] = merged_OI
        stored_as = str(rebuilt.compute.dtype).removeprefix("torch.")
        audits[name] = matrix_audit(rebuilt, name, stored_as, (stored_OI, wanted_OI, merged_OI))
    return rebuilt.plain_model(weights_OI), audits


def merge_into_formats(rebuilt: Rebuilt) -> tuple[Any, dict[str, MatrixAudit]]:
    """Encode every adapted matrix again in its own format, with the reference backend.

    Quantized matrices of other libraries are converted to the reference backend too. The model of ``rebuilt``
    changes in place. Raises :class:`UserError` when the base is in 16 bits.
    """
    if all(parse_format(done.format).bits >= 16 for done in rebuilt.applied.values()):
        raise UserError("no matrix of this run is quantized; export it with --to merged")
    layers = rebuilt.layers()
    wanted = rebuilt.wanted
    model, audits = rebuilt.model.unload(), {}
    with torch.no_grad():
        for name, layer in layers.items():
            unchanged = isinstance(layer, QuantLinear) and name not in rebuilt.adapter.parts
            if unchanged or isinstance(layer, nn.Embedding):
                continue
            stored_OI, wanted_OI = wanted(name)
            encoded = to_reference(layer, wanted_OI, rebuilt.format(name), rebuilt.compute.dtype)
            model.get_submodule(name.rpartition(".")[0])._modules[name.rpartition(".")[2]] = encoded
            merged_OI: Tensor = stored_weight(encoded)
            audits[name] = matrix_audit(
                rebuilt, name, rebuilt.format(name), (stored_OI, wanted_OI, merged_OI)
            )
        rebuilt.put_heads(model)
    return model, audits
