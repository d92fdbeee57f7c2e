"""``bitrank export``: options, table of the audit, limit on the added loss, and output."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bitrank.cli.arguments import file_path, location
from bitrank.cli.help import list_names, quantizers
from bitrank.errors import UserError
from bitrank.export.registry import (
    DEFAULT_QUANTIZER,
    EXPORTS,
    MERGED,
    ExportTarget,
    find_quantizer_for,
    find_target,
)

if TYPE_CHECKING:  # `bitrank --help` does not import torch
    from bitrank.export.audit import Audit
    from bitrank.export.prepared import Prepared

EXAMPLES = """examples:
  bitrank export RUN --out merged                  RUN: a spec id (bitrank list), or a folder in runs/work
  bitrank export RUN --to gguf --lora --out for-llama-cpp
  bitrank export RUN --to quantized --out small --max-loss 0.02
  bitrank export my-adapter --model ./my-bert --task reviews.csv --out merged"""
_MAX_LOSS = 0.05
_SHOWN = 12


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``bitrank export``."""
    parser.add_argument(
        "source", type=file_path, help="spec id of a run in the store, or folder of a run or of an adapter"
    )
    parser.add_argument(
        "--store", type=location, default="runs", help="store of a run given by its spec id (default: runs)"
    )
    about = "; ".join(f"{name}: {target.about}" for name, target in EXPORTS.items())
    parser.add_argument("--to", choices=list(EXPORTS), default=MERGED, help=f"{about} (default: %(default)s)")
    parser.add_argument("--out", type=file_path, required=True, help="folder to write; it must not exist")
    able = ", ".join(name for name, target in EXPORTS.items() if target.can_keep_adapter)
    parser.add_argument(
        "--lora",
        action="store_true",
        help=f"write the adapter apart from its base, which keeps its codes (targets: {able or 'none'})",
    )
    parser.add_argument(
        "--max-loss",
        type=float,
        default=_MAX_LOSS,
        metavar="NATS",
        help="maximum increase of the validation loss by the export (default: %(default)s)",
    )
    able = ", ".join(name for name, target in EXPORTS.items() if target.quantizes)
    quantizer = parser.add_argument(
        "--quantizer",
        metavar="NAME",
        help="codes of matrices that change, on calibration data of the task "
        f"(targets: {able}; default: {DEFAULT_QUANTIZER}); one of",
    )
    list_names(quantizer, quantizers)
    parser.add_argument("--force", action="store_true", help="write even if --max-loss is exceeded")
    parser.add_argument("--task", help="task to evaluate an adapter without its run")
    parser.add_argument("--model", help="16-bit base of an adapter without its run")
    parser.add_argument("--json", action="store_true", help="print the audit as JSON")


def act(arguments: argparse.Namespace) -> int:
    """Prepare the export, show its audit and write its files.

    Raises :class:`UserError`, and writes nothing, if the export adds more than ``--max-loss``.
    """
    if not (math.isfinite(arguments.max_loss) and arguments.max_loss >= 0):
        raise UserError(f"--max-loss must be a number of nats of 0 or more, got {arguments.max_loss}")
    from bitrank.export.prepared import Options, check_creatable, check_loss, write_export

    check_creatable(arguments.out)
    target = find_target(arguments.to, arguments.lora)
    quantizer = find_quantizer_for(arguments.to, arguments.quantizer)
    from bitrank.export.finished_run import check_has_adapter, find_run
    from bitrank.export.rebuild import rebuild

    run = find_run(_folder(arguments), arguments.task, arguments.model)
    target.check(run)
    if arguments.lora:
        check_has_adapter(run)
    options = Options(arguments.to, arguments.lora, quantizer)
    rebuilt = rebuild(run)
    prepared = target.prepare(rebuilt, options)
    prepared.notes.extend(rebuilt.notes)
    if not arguments.json:
        _show(prepared.audit, target)
    try:
        if not arguments.force:
            check_loss(prepared.audit, arguments.max_loss, target.advice)
        files = write_export(prepared, arguments.out)
    except UserError:
        if arguments.json:  # the audit shows why the export is rejected
            print(json.dumps({**prepared.audit.as_data(), "notes": prepared.notes}, indent=1))
        else:
            _print_notes(rebuilt.notes)
        raise
    _finish(arguments, prepared, files)
    return 0


def _folder(arguments: argparse.Namespace) -> Path:
    """The folder of the run or adapter; that of a spec id is in the store."""
    source: Path = arguments.source
    if source.exists() or len(source.parts) != 1:
        return source
    from bitrank.tracking.store import Store

    stored = Store.parse(arguments.store).work / source
    return stored if stored.is_dir() else source


def _finish(arguments: argparse.Namespace, prepared: Prepared, files: dict[str, int]) -> None:
    if arguments.json:
        found = {**prepared.audit.as_data(), "notes": prepared.notes, "files": files}
        print(json.dumps({**found, "out": str(arguments.out.resolve())}, indent=1))
        return
    _print_notes(prepared.notes)
    audit = prepared.audit
    parts = []
    if audit.base_bytes:
        parts.append(f"{audit.base_bytes:,} in the base (planned: {audit.planned_bytes:,})")
    if audit.adapter_bytes:
        parts.append(f"{audit.adapter_bytes:,} in the adapter (planned: {audit.planned_adapter_bytes:,})")
    rest = sum(files.values()) - audit.weight_bytes
    print(f"bytes: {', '.join(parts)} and {rest:,} in headers, tokenizer and configuration")
    print(f"exported: {arguments.out.resolve()}")


def _print_notes(notes: Sequence[str]) -> None:
    for note in notes:
        print(f"note: {note}")


def _show(audit: Audit, target: ExportTarget) -> None:
    from rich.table import Table

    from bitrank.terminal import console

    columns = ["validation", "adapted", f"exported to {audit.target}"]
    if audit.rounded:
        columns.append("if rounded")
    quality = Table(*columns, title="Audit", title_justify="left", box=None)
    for name, before in audit.before.items():
        rounded = [audit.rounded[name]] if audit.rounded else []
        quality.add_row(name, *(f"{value:.4f}" for value in (before, audit.after[name], *rounded)))
    console().print(quality, markup=False)
    worst = sorted(audit.matrices.items(), key=lambda item: -item[1].after)
    shown = f"the {min(_SHOWN, len(worst))} worst of {len(worst)}"
    errors = Table(
        "matrix",
        "format",
        "stored as",
        "rank",
        "without adapter",
        "exported",
        title_justify="left",
        box=None,
        title=f"Relative error to base + adapter, {shown}",
    )
    for name, row in worst[:_SHOWN]:
        errors.add_row(name, row.format, row.stored, str(row.rank), f"{row.before:.2%}", f"{row.after:.2%}")
    console().print(errors, markup=False)
    for (planned, stored), count in audit.replaced().items():
        print(
            f"{count} matrices of format {planned} are stored as {stored}, the nearest that the runtime has"
        )
    if audit.replaced():
        print(f"plans made with `bitrank plan --for {target.runtime}` have only formats that it stores")
