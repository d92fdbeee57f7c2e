"""The command line: ``bitrank matrix | run | plan | study | list | report | paper | sql | merge | doctor | ui``.

Exit codes: 0 all that was asked for is done, 1 something of it failed, 2 wrong words or bad input, 128 + n stopped by signal n.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bitrank import examples, executors, merge_command, plan_command, study_command
from bitrank.allocator import adopt
from bitrank.configs import CONFIGS
from bitrank.environment import set_own_environment
from bitrank.errors import UserError, is_user_error
from bitrank.profiles import PROFILES, find_profile
from bitrank.specs import SETTABLE, RunSpec, make_spec, matrix, parse_bytes, parse_setting

_HOLDING = ("plan", "study", "merge")  # commands that load a model into this very process


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the process's exit code."""
    arguments = _parser().parse_args(argv)
    if argv is None and arguments.command in _HOLDING:
        adopt()
    set_own_environment()
    from bitrank.interrupts import Interrupted

    try:
        return int(arguments.act(arguments))
    except Interrupted as stop:
        print(f"\nstopped by {stop}; the same command continues where it was", file=sys.stderr)
        return stop.code
    except KeyboardInterrupt:
        return 130
    except ValueError as error:
        if not is_user_error(error):
            raise
        print(f"bitrank: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bitrank", description="How many bits and how much LoRA rank each weight matrix gets, trained and compared."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    _add_matrix(commands)
    _add_run(commands)
    plan_command.add_options(
        _add(commands, "plan", "bits and rank for a model under a byte budget, without training", plan_command.EXAMPLES, plan_command.act)
    )
    study_command.add_options(_add(commands, "study", "compare planners at equal bytes", study_command.EXAMPLES, _study))
    _add_list(commands)
    _add_report(commands)
    _add_paper(commands)
    _add_sql(commands)
    merge_command.add_words(
        _add(commands, "merge", "fold a trained adapter into its base, with an audit", merge_command.EXAMPLES, merge_command.act)
    )
    doctor = _add(commands, "doctor", "hardware, dtypes, backends that work here, assets, what is missing", examples.DOCTOR, _doctor)
    doctor.add_argument("--json", action="store_true", help="print JSON")
    doctor.add_argument("--verify", action="store_true", help="only read every file of the cache and compare it with its digest")
    ui = _add(commands, "ui", "open the MLflow UI on 127.0.0.1 with the saved views", examples.UI, _ui)
    ui.add_argument("--store", default="runs", help="folder of the store (default: runs)")
    ui.add_argument("--profile", default="laptop", help="whose experiment the printed links open (default: laptop)")
    ui.add_argument("--port", type=int, default=5000, help="port to listen on (default: 5000)")
    ui.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 inside a container only (default: 127.0.0.1)")
    return parser


def _add(commands: Any, name: str, about: str, shown: str, act: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=about, description=about, epilog=shown, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.set_defaults(act=act)
    return parser


def _add_matrix(commands: Any) -> None:
    parser = _add(commands, "matrix", "run what is missing of the study matrix", examples.MATRIX, _matrix)
    _add_selection(parser)
    _add_places(parser)
    executors.add_options(parser)
    parser.add_argument("--jobs", type=int, help="runs at the same time (default: what cores and memory carry)")
    _add_settings(parser)


def _add_run(commands: Any) -> None:
    parser = _add(commands, "run", "do one run", examples.RUN, _run)
    parser.add_argument("--config", help=f"one of {', '.join(CONFIGS)}")
    parser.add_argument("--task", required=True, help="a task's name, or the path of a .csv, .jsonl or .parquet file")
    parser.add_argument("--profile", default="laptop", help=f"defaults for this kind of task: {', '.join(PROFILES)}")
    parser.add_argument("--plan", help="a plan file instead of a config: JSON with precision and ranks by module")
    parser.add_argument("--model", help="minilm, smollm2, a hub id, or a local folder")
    parser.add_argument("--epochs", type=int, help="passes over the training data")
    parser.add_argument("--max-steps", type=int, dest="steps", help="optimizer steps instead of epochs")
    parser.add_argument("--batch-size", type=int, help="sequences a micro-batch")
    parser.add_argument("--seed", type=int, help="seed of everything random (default: 0)")
    _add_places(parser)
    executors.add_options(parser)
    _add_settings(parser)


def _add_list(commands: Any) -> None:
    parser = _add(commands, "list", "the matrix: every run, its id, its state, what it would cost", examples.LIST, _list)
    _add_selection(parser)
    parser.add_argument("--store", default="runs", help="folder or MLflow URI (default: runs)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    _add_settings(parser)


def _add_report(commands: Any) -> None:
    parser = _add(commands, "report", "figures, tables and one HTML page from the store", examples.REPORT, _report)
    _add_experiment(parser)
    parser.add_argument("--out", type=Path, default=Path("results/report"), help="folder to write to (default: results/report)")
    parser.add_argument("--ui-url", default="http://127.0.0.1:5000", help="where the MLflow UI answers, for links (default: %(default)s)")


def _add_paper(commands: Any) -> None:
    parser = _add(commands, "paper", "the paper's numbers, tables, figures and claims from the store", examples.PAPER, _paper)
    _add_experiment(parser)
    parser.add_argument("--configs", type=_words, default=list(CONFIGS), help=f"arms that count (default: {','.join(CONFIGS)})")
    parser.add_argument("--out", type=Path, default=Path("paper/generated"), help="folder to write to (default: paper/generated)")


def _add_experiment(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--store", default="runs", help="folder of the store, or a sqlite:/// or postgresql:// URI (default: runs)")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--experiment", help="name of the experiment (default: the only one in the store)")
    which.add_argument("--profile", help=f"the experiment of a profile: {', '.join(PROFILES)}")


def _add_sql(commands: Any) -> None:
    parser = _add(commands, "sql", "ask the store one question in SQL (DuckDB's), read-only", examples.SQL, _sql)
    parser.add_argument("statement", help="one statement over the views named below")
    parser.add_argument("--format", choices=["table", "csv", "json"], default="table", help="how to print the answer (default: table)")
    parser.add_argument("--store", default="runs", help="folder of the store, or a sqlite:/// or postgresql:// URI (default: runs)")


def _add_selection(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--profile", default="laptop", help=f"{'; '.join(f'{p.name}: {p.about}' for p in PROFILES.values())}")
    parser.add_argument("--configs", type=_words, default=list(CONFIGS), help=f"comma-separated (default: {','.join(CONFIGS)})")
    parser.add_argument("--tasks", type=_words, help="comma-separated (default: the profile's)")
    parser.add_argument("--seeds", type=_numbers, help="comma-separated whole numbers (default: the profile's)")


def _add_places(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--store", default="runs", help="folder or MLflow URI that keeps the runs (default: runs)")
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder for JSON and CSV (default: results)")
    parser.add_argument("--force", action="store_true", help="run again what is complete")
    parser.add_argument("--wandb", action="store_true", help=study_command.WANDB)


def _add_settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quant-backend", help="override low-bit formats: auto, cuda-4bit, cuda-8bit, cpu-4bit, cpu-int8, "
                        "quanto-int4, quanto-int8, none")  # fmt: skip
    parser.add_argument("--memory-limit", metavar="BYTES", help="keep each run's process under this, such as 1.5GiB, by smaller passes")
    parser.add_argument(
        "--mps-safe", action="store_true", default=None, help="no tensor over 2³² bytes, by smaller passes (always so on MPS)"
    )
    parser.add_argument("--processes", type=int, metavar="N", help="train each run in N processes, one GPU each (default: 1)")
    parser.add_argument(
        "--shard", action="store_true", default=None, help="with --processes: a 16-bit base in slices, one a process (FSDP)"
    )
    parser.add_argument("--data", help="local folder with the hub task's data")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=f"any of {', '.join(SETTABLE)}")


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _numbers(text: str) -> list[int]:
    try:
        return [int(word) for word in _words(text)]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected whole numbers like 0,1,2, got {text!r}") from None


def _settings(arguments: argparse.Namespace) -> dict[str, Any]:
    words = ("quant_backend", "data", "model", "epochs", "steps", "batch_size", "plan", "mps_safe", "processes", "shard")
    given = {word: getattr(arguments, word) for word in words if getattr(arguments, word, None) is not None}
    if arguments.memory_limit is not None:
        given["memory_limit"] = parse_bytes(arguments.memory_limit)
    return {**given, **dict(parse_setting(text) for text in arguments.set)}


def _specs(arguments: argparse.Namespace) -> list[RunSpec]:
    profile = find_profile(arguments.profile)
    tasks = arguments.tasks or list(profile.tasks)
    seeds = arguments.seeds if arguments.seeds is not None else list(profile.seeds)
    return matrix(profile, arguments.configs, tasks, seeds, _settings(arguments))


def _matrix(arguments: argparse.Namespace) -> int:
    return _do(_specs(arguments), arguments, jobs=arguments.jobs)


def _run(arguments: argparse.Namespace) -> int:
    if (arguments.config is None) == (arguments.plan is None):
        raise UserError(f"give --config (one of {', '.join(CONFIGS)}) or --plan FILE, and not both")
    spec = make_spec(find_profile(arguments.profile), arguments.config or "", arguments.task, _settings(arguments))
    if arguments.seed is not None:
        from bitrank.specs import check

        spec = check(replace(spec, seed=arguments.seed))
    return _do([spec], arguments, jobs=1)


def _do(specs: list[RunSpec], arguments: argparse.Namespace, jobs: int | None) -> int:
    from bitrank.study import Options, run_study, show

    options = Options(arguments.store, arguments.results, executors.execution(arguments, jobs), arguments.force)
    done = run_study(specs, options)
    show(done, options)
    if any(job.status == "bad input" for job in done):
        return 2
    return 0 if all(job.status in {"finished", "done", "stale"} for job in done) else 1


def _list(arguments: argparse.Namespace) -> int:
    from bitrank.listing import rows, table

    listed = rows(_specs(arguments), arguments.store)
    if arguments.json:
        print(json.dumps(listed, indent=1))
    else:
        from bitrank.display import console

        console().print(table(listed))
    return 0


def _report(arguments: argparse.Namespace) -> int:
    from bitrank_analysis import load_study, open_store
    from bitrank_analysis.report import collect, write

    report = collect(load_study(open_store(arguments.store), _experiment(arguments)), arguments.ui_url)
    page = write(report, arguments.out)
    print("\n\n".join([*report.verdict, f"report: {page.resolve()}"]))
    return 0


def _study(arguments: argparse.Namespace) -> int:
    from bitrank_analysis.planners import planners_report

    return study_command.act(arguments, planners_report)


def _paper(arguments: argparse.Namespace) -> int:
    from bitrank_analysis.paper import write_paper

    print(f"paper inputs: {write_paper(arguments.store, arguments.out, _experiment(arguments), arguments.configs)}")
    return 0


def _experiment(arguments: argparse.Namespace) -> str | None:
    return f"bitrank-{find_profile(arguments.profile).name}" if arguments.profile else arguments.experiment


def _sql(arguments: argparse.Namespace) -> int:
    from bitrank_analysis import query

    print(query(arguments.store, arguments.statement, arguments.format), end="")
    return 0


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
        lines = [f"{folder}: other content than was built; the next command that opens it builds it again" for folder in found]
        print("\n".join(lines or [f"{cache_dir()}: every file is as it was built"]))
    return 1 if found else 0


def _ui(arguments: argparse.Namespace) -> int:
    from bitrank.ui import serve

    return serve(arguments.store, find_profile(arguments.profile).name, arguments.port, arguments.host)


if __name__ == "__main__":
    sys.exit(main())
