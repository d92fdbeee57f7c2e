"""``bitrank merge``: options, table of the audit, limit on the added loss, and output."""

from __future__ import annotations

import argparse
import json
import math
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from bitrank.cli.arguments import file_path
from bitrank.errors import UserError
from bitrank.process.fast_imports import quiet_libraries

if TYPE_CHECKING:  # `bitrank --help` does not import torch
    from bitrank.export.merge import Audit, Merged

EXAMPLES = """examples:
  bitrank merge RUN --out merged                   RUN: the run's folder, named by its spec id in runs/work
  bitrank merge RUN --out small --into quantized --max-loss 0.02
  bitrank merge my-adapter --model ./my-bert --task reviews.csv --out merged"""
_MAX_LOSS = 0.05
_SHOWN = 12


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``bitrank merge``."""
    parser.add_argument("source", type=file_path, help="folder of a run or of an adapter")
    parser.add_argument("--out", type=file_path, required=True, help="folder to write; it must not exist")
    parser.add_argument(
        "--into",
        choices=["16bit", "quantized"],
        default="16bit",
        help="16bit: for transformers without bitrank, in the compute dtype of runs; quantized: each matrix "
        "in its own format (default: 16bit)",
    )
    parser.add_argument(
        "--max-loss",
        type=float,
        default=_MAX_LOSS,
        metavar="NATS",
        help="maximum increase of the validation loss by merging (default: %(default)s)",
    )
    parser.add_argument("--force", action="store_true", help="write even if --max-loss is exceeded")
    parser.add_argument("--task", help="task to evaluate an adapter without its run")
    parser.add_argument("--model", help="16-bit base of an adapter without its run")
    parser.add_argument("--json", action="store_true", help="print the audit as JSON")


def act(arguments: argparse.Namespace) -> int:
    """Merge, show the audit and write the model.

    Raises :class:`UserError`, and writes nothing, if merging adds more than ``--max-loss``.
    """
    if arguments.out.exists():
        raise UserError(f"{arguments.out} exists already; give --out a folder that does not")
    if not (math.isfinite(arguments.max_loss) and arguments.max_loss >= 0):
        raise UserError(f"--max-loss must be a number of nats of 0 or more, got {arguments.max_loss}")
    quiet_libraries()
    from bitrank.export.finished_run import find_run
    from bitrank.export.merge import merge

    merged = merge(find_run(arguments.source, arguments.task, arguments.model), arguments.into)
    _show(merged.audit, arguments.json)
    added = merged.audit.added_loss
    accepted = added <= arguments.max_loss  # false for NaN, which is rejected too
    if not accepted and not arguments.force:
        raise UserError(
            f"merging adds {added:.4f} nats to the validation loss, more than --max-loss "
            f"{arguments.max_loss:g}: nothing was written. Merge into 16bit, increase --max-loss, "
            "or give --force"
        )
    _write(merged, arguments.out)
    if merged.padding and not arguments.json:
        print(f"note: {merged.padding}")
    print(f"merged: {arguments.out.resolve()}")
    return 0


def as_data(audit: Audit) -> dict[str, object]:
    """The audit as plain data."""
    return {**asdict(audit), "added_loss": audit.added_loss}


def _show(audit: Audit, as_json: bool) -> None:
    if as_json:
        print(json.dumps(as_data(audit), indent=1))
        return
    from rich.table import Table

    from bitrank.terminal import console

    quality = Table(
        "validation", "adapted", f"merged into {audit.into}", title="Audit", title_justify="left", box=None
    )
    for name, before in audit.before.items():
        quality.add_row(name, f"{before:.4f}", f"{audit.after[name]:.4f}")
    console().print(quality)
    worst = sorted(audit.matrices.items(), key=lambda item: -item[1].after)
    shown = f"the {min(_SHOWN, len(worst))} worst of {len(worst)}"
    errors = Table(
        "matrix",
        "format",
        "rank",
        "without adapter",
        "merged",
        title_justify="left",
        box=None,
        title=f"Relative error to base + adapter, {shown}",
    )
    for name, row in worst[:_SHOWN]:
        errors.add_row(name, row.format, str(row.rank), f"{row.before:.2%}", f"{row.after:.2%}")
    console().print(errors)


def _write(merged: Merged, out: Path) -> None:
    """Write the folder atomically: to a temporary name first, then renamed."""
    from bitrank_quant import save_quantized

    unfinished = out.parent / f".{out.name}.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    if merged.audit.into == "16bit":
        merged.model.save_pretrained(unfinished)
    else:
        merged.model.config.save_pretrained(unfinished)
        save_quantized(merged.model, unfinished)
    merged.tokenizer.save_pretrained(unfinished)
    (unfinished / "audit.json").write_text(json.dumps(as_data(merged.audit), indent=1))
    unfinished.rename(out)
