"""``bitrank merge``: its words, its table, its refusal, and what it writes."""

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

if TYPE_CHECKING:  # `bitrank --help` loads no torch
    from bitrank.export.merge import Audit, Merged

EXAMPLES = """examples:
  bitrank merge RUN --out merged                   RUN: the run's folder, named by its spec id in runs/work
  bitrank merge RUN --out small --into quantized --max-loss 0.02
  bitrank merge my-adapter --model ./my-bert --task reviews.csv --out merged"""
_MAX_LOSS = 0.05
_SHOWN = 12


def add_options(parser: argparse.ArgumentParser) -> None:
    """The words of the command."""
    parser.add_argument("source", type=file_path, help="a run's folder, or an adapter's")
    parser.add_argument("--out", type=file_path, required=True, help="folder to write; it must not exist yet")
    parser.add_argument("--into", choices=["16bit", "quantized"], default="16bit",
                        help="16bit: for stock transformers, in the dtype that runs compute in; quantized: each matrix in its own format "
                        "(default: 16bit)")  # fmt: skip
    parser.add_argument("--max-loss", type=float, default=_MAX_LOSS, metavar="NATS",
                        help="refuse when merging adds more than this to the validation loss (default: %(default)s)")  # fmt: skip
    parser.add_argument("--force", action="store_true", help="write whatever it costs")
    parser.add_argument("--task", help="for an adapter without its run: what to judge it on")
    parser.add_argument("--model", help="for an adapter without its run: its 16-bit base")
    parser.add_argument("--json", action="store_true", help="print the audit as JSON")


def act(arguments: argparse.Namespace) -> int:
    """Merge, show the audit, and write unless it costs too much. Raises :class:`UserError` then, with nothing
    written.
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
    if not added <= arguments.max_loss and not arguments.force:  # a loss that is no number is refused too
        raise UserError(
            f"merging adds {added:.4f} nats to the validation loss, more than --max-loss {arguments.max_loss:g}: nothing was written. "
            "Merge into 16bit, allow more, or say --force"
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
    errors = Table("matrix", "format", "rank", "without adapter", "merged", title_justify="left", box=None,
                   title=f"Relative error to base + adapter, the {min(_SHOWN, len(worst))} worst of {len(worst)}")  # fmt: skip
    for name, row in worst[:_SHOWN]:
        errors.add_row(name, row.format, str(row.rank), f"{row.before:.2%}", f"{row.after:.2%}")
    console().print(errors)


def _write(merged: Merged, out: Path) -> None:
    """The whole folder or none."""
    from bitrank_quant import save_quantized

    making = out.parent / f".{out.name}.making"
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    if merged.audit.into == "16bit":
        merged.model.save_pretrained(making)
    else:
        merged.model.config.save_pretrained(making)
        save_quantized(merged.model, making)
    merged.tokenizer.save_pretrained(making)
    (making / "audit.json").write_text(json.dumps(as_data(merged.audit), indent=1))
    making.rename(out)
