"""Targets of ``bitrank export`` by name. A new target is one module and one entry here.

Importing this module loads no model library, so that help texts can list the targets.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bitrank.errors import UserError, unknown
from bitrank.export.prepared import Options, Prepared

if TYPE_CHECKING:
    from bitrank.export.finished_run import FinishedRun
    from bitrank.export.rebuild import Rebuilt


def _accept_any(run: FinishedRun) -> None: ...


@dataclass(frozen=True)
class ExportTarget:
    """A target of an export.

    ``prepare`` makes the export in memory, with its audit. ``check`` raises :class:`UserError`, before any
    weight is read, for a run that the target does not support. ``runtime`` is the key of
    :data:`~bitrank.planning.restrictions.RUNTIMES` whose formats survive. ``advice`` begins the sentence on
    what to do about an export that adds too much loss. ``can_keep_adapter``: ``--lora`` is supported.
    """

    about: str
    runtime: str
    prepare: Callable[[Rebuilt, Options], Prepared]
    check: Callable[[FinishedRun], None] = _accept_any
    advice: str = "Export it with --to merged"
    can_keep_adapter: bool = False

    def survives(self, text: str) -> bool:
        """Whether the runtime stores the format ``text`` in the planned bytes."""
        from bitrank_quant import parse_format

        from bitrank.planning.restrictions import RUNTIMES

        return RUNTIMES[self.runtime].can_store(parse_format(text))


def _peft(rebuilt: Rebuilt, options: Options) -> Prepared:
    from bitrank.export.peft_adapter import prepare_peft

    return prepare_peft(rebuilt, options)


def _merged(rebuilt: Rebuilt, options: Options) -> Prepared:
    from bitrank.export.merge import prepare_merged

    return prepare_merged(rebuilt, options)


def _quantized(rebuilt: Rebuilt, options: Options) -> Prepared:
    from bitrank.export.merge import prepare_quantized

    return prepare_quantized(rebuilt, options)


def _mlx(rebuilt: Rebuilt, options: Options) -> Prepared:
    from bitrank.export.mlx import prepare_mlx

    return prepare_mlx(rebuilt, options)


def _check_mlx(run: FinishedRun) -> None:
    from bitrank.export.mlx import check_mlx

    check_mlx(run)


def _compressed(rebuilt: Rebuilt, options: Options) -> Prepared:
    from bitrank.export.compressed_tensors import prepare_compressed

    return prepare_compressed(rebuilt, options)


def _check_compressed(run: FinishedRun) -> None:
    from bitrank.export.compressed_tensors import check_compressed

    check_compressed(run)


EXPORTS: dict[str, ExportTarget] = {
    "peft": ExportTarget("the adapter alone, for PEFT over the unquantized base", "any", _peft),
    "merged": ExportTarget(
        "for transformers without bitrank: the adapter folded into the base, in the compute dtype of runs",
        "any",
        _merged,
        advice="Train again with --set dtype=fp32",
    ),
    "quantized": ExportTarget(
        "for bitrank: the adapter folded into the base, each matrix in its own format", "any", _quantized
    ),
    "mlx": ExportTarget(
        "for mlx-lm: affine groups with the codes of the run", "mlx", _mlx, _check_mlx, can_keep_adapter=True
    ),
    "compressed-tensors": ExportTarget(
        "for vLLM and transformers: symmetric groups in the blocks, the rest in 16 bits",
        "vllm",
        _compressed,
        _check_compressed,
    ),
}
MERGED = "merged"


def find_target(name: str, adapter_apart: bool) -> ExportTarget:
    """The target called ``name``.

    Raises :class:`UserError` if there is none, or if it cannot keep an adapter apart from its base.
    """
    if name not in EXPORTS:
        raise unknown("export target", name, EXPORTS)
    target = EXPORTS[name]
    if adapter_apart and not target.can_keep_adapter:
        able = [other for other, entry in EXPORTS.items() if entry.can_keep_adapter]
        remedy = f"; targets that can: {', '.join(able)}" if able else ""
        raise UserError(f"--to {name} cannot keep the adapter apart from its base; omit --lora{remedy}")
    return target
