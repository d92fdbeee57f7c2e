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
    from bitrank.export.checked_model import CheckedModel
    from bitrank.export.finished_run import FinishedRun
    from bitrank.export.rebuild import Rebuilt
    from bitrank.spec.run_spec import RunSpec


def _accept_any(_: object) -> None: ...


@dataclass(frozen=True)
class ExportTarget:
    """A target of an export.

    ``prepare`` makes the export in memory, with its audit. ``check_model`` raises :class:`UserError` for a
    model that the target does not support, from its configuration and tokenizer, so that a plan asks it too;
    ``check_run`` for a run that left nothing to export. ``runtime`` is the key of
    :data:`~bitrank.planning.restrictions.RUNTIMES` whose formats survive. ``advice`` begins the sentence on
    what to do about an export that adds too much loss. ``can_keep_adapter``: ``--lora`` is supported.
    ``quantizes``: a quantizer, by default :data:`DEFAULT_QUANTIZER`, chooses the codes of matrices that
    change.
    """

    about: str
    runtime: str
    prepare: Callable[[Rebuilt, Options], Prepared]
    check_model: Callable[[CheckedModel], None] = _accept_any
    check_run: Callable[[FinishedRun], None] = _accept_any
    advice: str = "Export it with --to merged"
    can_keep_adapter: bool = False
    quantizes: bool = False

    def check(self, run: FinishedRun) -> None:
        """Raise :class:`UserError`, before any weight is read, for a run that is not supported."""
        from bitrank.export.checked_model import CheckedModel

        self.check_model(CheckedModel.of_run(run.spec))
        self.check_run(run)

    def survives(self, text: str) -> bool:
        """Whether the runtime stores the format ``text`` in the planned bytes."""
        from bitrank_quant import parse_format

        from bitrank.planning.restrictions import RUNTIMES

        return RUNTIMES[self.runtime].can_store(parse_format(text))


def _peft(rebuilt: Rebuilt, options: Options) -> Prepared:
    from bitrank.export.peft_adapter import prepare_peft

    return prepare_peft(rebuilt, options)


def _check_peft(run: FinishedRun) -> None:
    from bitrank.export.finished_run import check_has_adapter

    check_has_adapter(run)


def _merged(rebuilt: Rebuilt, options: Options) -> Prepared:
    from bitrank.export.merge import prepare_merged

    return prepare_merged(rebuilt, options)


def _quantized(rebuilt: Rebuilt, options: Options) -> Prepared:
    from bitrank.export.merge import prepare_quantized

    return prepare_quantized(rebuilt, options)


def _mlx(rebuilt: Rebuilt, options: Options) -> Prepared:
    from bitrank.export.mlx import prepare_mlx

    return prepare_mlx(rebuilt, options)


def _check_mlx(model: CheckedModel) -> None:
    from bitrank.export.mlx import check_mlx

    check_mlx(model)


def _compressed(rebuilt: Rebuilt, options: Options) -> Prepared:
    from bitrank.export.compressed_tensors import prepare_compressed

    return prepare_compressed(rebuilt, options)


def _check_compressed(model: CheckedModel) -> None:
    from bitrank.export.compressed_tensors import check_compressed

    check_compressed(model)


def _gguf(rebuilt: Rebuilt, options: Options) -> Prepared:
    from bitrank.export.gguf.prepare import prepare_gguf

    return prepare_gguf(rebuilt, options)


def _check_gguf(model: CheckedModel) -> None:
    from bitrank.export.gguf.prepare import check_gguf

    check_gguf(model)


EXPORTS: dict[str, ExportTarget] = {
    "peft": ExportTarget(
        "the adapter alone, for PEFT over the unquantized base", "any", _peft, check_run=_check_peft
    ),
    "merged": ExportTarget(
        "for transformers without bitrank: the adapter folded into the base, in the compute dtype of runs",
        "any",
        _merged,
        advice="Train again with --set dtype=fp32",
    ),
    "quantized": ExportTarget(
        "for bitrank: the adapter folded into the base, each matrix in its own format",
        "any",
        _quantized,
        quantizes=True,
    ),
    "mlx": ExportTarget(
        "for mlx-lm: affine groups, each matrix in the one nearest to its format",
        "mlx",
        _mlx,
        _check_mlx,
        advice="Keep the adapter apart with --lora, export it with --to merged",
        can_keep_adapter=True,
        quantizes=True,
    ),
    "compressed-tensors": ExportTarget(
        "for vLLM and transformers: symmetric groups in the blocks, the rest in 16 bits",
        "vllm",
        _compressed,
        _check_compressed,
        quantizes=True,
    ),
    "gguf": ExportTarget(
        "for llama.cpp, LM Studio and Ollama: one file, each matrix in the tensor type nearest to its format",
        "gguf",
        _gguf,
        _check_gguf,
        advice="Keep the adapter apart with --lora, export it with --to merged",
        can_keep_adapter=True,
        quantizes=True,
    ),
}
MERGED = "merged"
DEFAULT_QUANTIZER = Options.quantizer


def check_runtime(runtime: str, spec: RunSpec, is_outline: bool = False) -> None:
    """Raise the :class:`UserError` with which an export for ``runtime`` would refuse the model of ``spec``.

    A plan for a runtime asks before anything is measured, and not after hours of training. ``is_outline``:
    the model is a ``config.json`` alone.
    """
    from bitrank.export.checked_model import CheckedModel

    model = CheckedModel.of_outline(spec) if is_outline else CheckedModel.of_run(spec)
    for target in EXPORTS.values():
        if target.runtime == runtime:
            target.check_model(model)


def find_quantizer_for(name: str, given: str | None) -> str:
    """The quantizer ``given`` for the target ``name``, or the default.

    Raises :class:`UserError` if the target has no use for one, and the quant package's error for an unknown
    one.
    """
    from bitrank_quant import find_quantizer

    if given is not None and not EXPORTS[name].quantizes:
        able = ", ".join(other for other, entry in EXPORTS.items() if entry.quantizes)
        raise UserError(f"--to {name} quantizes nothing by a quantizer; omit --quantizer (targets: {able})")
    return find_quantizer(DEFAULT_QUANTIZER if given is None else given).name


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
