"""The command line ``bitrank``; ``_parser`` adds one subcommand per module of this package.

Exit codes: 0 all requested work is done, 1 a part of it failed, 2 wrong arguments or bad input, 128 + n
stopped by signal n (141, SIGPIPE: the reader of the output is gone).
"""

from __future__ import annotations

import argparse
import json
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bitrank import __version__
from bitrank.cli import export, plan, study
from bitrank.cli.arguments import check_text
from bitrank.cli.encoding import show_every_character
from bitrank.cli.help import Parser
from bitrank.cli.list import add_list
from bitrank.cli.matrix import add_matrix, add_run
from bitrank.cli.notes import add_notes
from bitrank.cli.options import add_command
from bitrank.cli.report import add_evidence, add_paper, add_report, add_sql
from bitrank.cli.ui import add_ui
from bitrank.errors import BAD_INPUT, FAILED, UserError, disk_problem, is_full_disk, is_user_error, masked
from bitrank.process.env_file import read_env_file
from bitrank.process.environment import set_own_environment
from bitrank.process.fast_imports import quiet_libraries
from bitrank.process.tcmalloc import adopt
from bitrank.terminal import closed_streams, until_reader_is_gone

DOCTOR = """examples:
  bitrank doctor
  bitrank doctor --json
  bitrank doctor --verify"""

_LOADING_MODELS = ("plan", "study", "export")  # commands that load a model into their own process


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code of the process."""
    show_every_character()
    return until_reader_is_gone(lambda: _run(argv))


def _run(argv: Sequence[str] | None) -> int:
    try:
        check_text(sys.argv[1:] if argv is None else argv)
        read_env_file(_working_folder())
    except UserError as error:
        print(f"bitrank: {error}", file=sys.stderr)
        return 2
    quiet_libraries()  # the help of some commands lists formats, which imports libraries
    arguments = _parser().parse(argv)
    if argv is None and arguments.command in _LOADING_MODELS:
        adopt()
    set_own_environment()
    from bitrank.execution.interrupts import Interrupted

    try:
        return int(arguments.act(arguments))
    except Interrupted as stop:
        print(f"\nstopped by {stop}; repeat the same command to continue", file=sys.stderr)
        return stop.code
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if isinstance(error, BrokenPipeError) and closed_streams():
            raise
        if not is_user_error(error) and (problem := disk_problem(error)):
            # Errors of writing name no file: it may be the one that standard output goes to.
            advice = "free space, or send the output, --store, --results or BITRANK_CACHE elsewhere"
            print(f"bitrank: {masked(problem)}; {advice}", file=sys.stderr)
            return FAILED if is_full_disk(error) else BAD_INPUT
        if not is_user_error(error):
            if argv is not None:
                raise
            # A library's message may contain the password of the store's URI, so the trace is masked.
            print(masked(traceback.format_exc()), file=sys.stderr, end="")
            return 1
        print(f"bitrank: {masked(str(error))}", file=sys.stderr)
        return FAILED if is_full_disk(error) else BAD_INPUT


def _working_folder() -> Path:
    try:
        return Path.cwd()
    except FileNotFoundError:
        raise UserError("the working folder was deleted; change to one that exists and repeat") from None


def _parser() -> Parser:
    parser = Parser(
        prog="bitrank",
        description="Choose bits and LoRA rank for each weight matrix, train, and compare.",
    )
    parser.add_argument("--version", action="version", version=f"bitrank {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    add_matrix(commands)
    add_run(commands)
    plan.add_options(
        add_command(
            commands,
            "plan",
            "choose bits and rank for a model under a byte budget, without training",
            plan.EXAMPLES,
            plan.act,
        )
    )
    study.add_options(
        add_command(commands, "study", "compare planners at equal bytes", study.EXAMPLES, _study)
    )
    add_list(commands)
    add_report(commands)
    add_paper(commands)
    add_evidence(commands)
    add_sql(commands)
    add_notes(commands)
    export.add_options(
        add_command(
            commands,
            "export",
            "write a finished run for the programs that people use, with an audit",
            export.EXAMPLES,
            export.act,
        )
    )
    _add_doctor(commands)
    add_ui(commands)
    return parser


def _add_doctor(commands: Any) -> None:
    doctor = add_command(
        commands,
        "doctor",
        "show hardware, dtypes, working backends, assets, and missing parts",
        DOCTOR,
        _doctor,
    )
    doctor.add_argument("--json", action="store_true", help="print JSON")
    doctor.add_argument(
        "--verify",
        action="store_true",
        help="only compare every file of the cache with its digest",
    )


def _study(arguments: argparse.Namespace) -> int:
    from bitrank_analysis.report import planners_report

    return study.act(arguments, planners_report)


def _doctor(arguments: argparse.Namespace) -> int:
    if arguments.verify:
        return _verify(arguments.json)
    from bitrank.doctor import examine, print_report

    report = examine()
    if arguments.json:
        print(json.dumps(report, indent=1))
    else:
        print_report(report)
    return 0


def _verify(as_json: bool) -> int:
    from bitrank_data import cache_dir, damaged

    found = [str(folder) for folder in damaged()]
    if as_json:
        print(json.dumps({"cache": str(cache_dir()), "damaged": found}, indent=1))
    else:
        lines = [
            f"{folder}: the content differs from its digest; the next command that opens it builds it again"
            for folder in found
        ]
        print("\n".join(lines or [f"{cache_dir()}: every file matches its digest"]))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
