"""Fold a trained adapter into its base.

``merged`` replaces every matrix by W_q + scale · B A in the run's compute dtype, for transformers without
bitrank. ``quantized`` replaces it by q(W_q + scale · B A) in its own format, q being a quantizer
(:mod:`~bitrank.export.requantize`).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from bitrank_quant import parse_format, save_quantized, stored_bytes

from bitrank.errors import UserError
from bitrank.export.audit import Audit, MatrixAudit, matrix_audit
from bitrank.export.padding import separate_padding
from bitrank.export.prepared import Options, Prepared
from bitrank.export.rebuild import Rebuilt
from bitrank.export.requantize import Requantized, requantize
from bitrank.export.run_texts import run_texts


def prepare_merged(rebuilt: Rebuilt, options: Options) -> Prepared:
    """A 16-bit model for transformers, with every matrix replaced by W_q + scale · B A."""
    model, matrices = merge_into_16bit(rebuilt)
    return _prepared(rebuilt, options.target, Requantized(model, matrices), model.save_pretrained)


def prepare_quantized(rebuilt: Rebuilt, options: Options) -> Prepared:
    """Codes and scales of every matrix in its own format, for :func:`bitrank_quant.load_quantized`.

    Raises :class:`UserError` when the base is in 16 bits.
    """
    if all(parse_format(done.format).bits >= 16 for done in rebuilt.applied.values()):
        raise UserError("no matrix of this run is quantized; export it with --to merged")
    merged = requantize(rebuilt, options.quantizer)

    def write(folder: Path) -> None:
        model = merged.model
        model.config.architectures = [type(model).__name__]  # not that of the base, as transformers saves it
        model.config.save_pretrained(folder)
        save_quantized(model, folder)

    return _prepared(rebuilt, options.target, merged, write)


def _prepared(
    rebuilt: Rebuilt, target: str, merged: Requantized, write: Callable[[Path], object]
) -> Prepared:
    model, after = merged.model, rebuilt.evaluate(merged.model)
    weights = stored_bytes(model).total
    audit = Audit(
        target,
        rebuilt.metrics,
        after,
        merged.matrices,
        rebuilt.planned_bytes,
        weights,
        rounded=merged.rounded,
    )
    padding = separate_padding(model, rebuilt.tokenizer, rebuilt.data.task)
    texts = run_texts(rebuilt)

    def write_all(folder: Path) -> None:
        write(folder)
        texts.write(rebuilt.tokenizer, folder)

    return Prepared(audit, weights, write_all, [*([padding] if padding else []), *texts.notes])


def merge_into_16bit(rebuilt: Rebuilt) -> tuple[Any, dict[str, MatrixAudit]]:
    """A new 16-bit model with every matrix replaced by W_q + scale · B A."""
    weights_OI, audits = {}, {}
    for name in rebuilt.layers():
        stored_OI, adapted_OI = rebuilt.stored_and_adapted(name)
        merged_OI = adapted_OI.to(rebuilt.compute.dtype)
        weights_OI[name] = merged_OI
        stored_as = str(rebuilt.compute.dtype).removeprefix("torch.")
        audits[name] = matrix_audit(rebuilt, name, stored_as, (stored_OI, adapted_OI, merged_OI))
    return rebuilt.plain_model(weights_OI), audits
