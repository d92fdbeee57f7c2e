"""``bitrank report``, ``paper``, ``evidence`` and ``sql``: read the store through the analysis package."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitrank.cli.arguments import comma_separated, file_path, location
from bitrank.cli.notes import add_folder, write_notes
from bitrank.cli.options import add_command
from bitrank.errors import UserError
from bitrank.spec.configs import DEFAULT_CONFIGS
from bitrank.spec.profiles import PROFILES, find_profile

if TYPE_CHECKING:  # imports pandas and DuckDB
    from bitrank_analysis import BudgetCurve

_CURVES = Path("results")  # `bitrank report` looks for curves here
# Those of bitrank_analysis, which imports pandas and DuckDB; a test compares them.
SQL_FORMATS = ("table", "csv", "json")
SQL_VIEWS = (
    "runs",
    "params",
    "tags",
    "metrics",
    "final_metrics",
    "wide",
    "predictions",
    "ranks",
    "plans",
    "specs",
    "unread",
)
SQL = f"""examples:
  bitrank sql 'SELECT run_name, status, "m.eval/acc", "m.eval/ppl", "m.model/mib" FROM wide ORDER BY 1'
  bitrank sql "SELECT run_id, step, value FROM metrics WHERE key = 'train/loss'" --format csv > loss.csv
  bitrank sql "SELECT format, count(*), sum(rank) FROM plans GROUP BY ALL" --format json
views: {" ".join(SQL_VIEWS)}"""
REPORT = """examples:
  bitrank report                                   writes results/report/report.html
  bitrank report --profile paper --out paper-report
  bitrank report --curves my-curves                my-curves: --save of `bitrank plan --budgets`
  bitrank report --planning results/systems/planning.json --experiment bitrank-systems --out systems-report
  bitrank report --store postgresql://me@host/mlflow --artifacts /mnt/mlflow --ui-url http://host:5000"""
PAPER = """examples:
  bitrank paper                                    writes numbers, tables, figures, claims to paper/generated
  bitrank paper --profile paper --store sqlite:////data/runs/mlflow.db
  bitrank paper --configs B-FP,B-Q4,Joint-2 --out draft/generated"""

EVIDENCE = """examples:
  bitrank evidence                                 writes results/evidence from the only experiment in runs
  bitrank evidence --experiment bitrank-allocators --out allocators-evidence
  bitrank evidence --store monday/runs --store tuesday/runs --out whole   two parts of one study
  bitrank report --store results/evidence          the report again, without the runs
  bitrank sql --store results/evidence 'SELECT run_name, "m.eval/ppl" FROM wide'"""


def add_report(commands: Any) -> None:
    parser = add_command(
        commands, "report", "write figures, tables and one HTML page from the store", REPORT, _report
    )
    _add_store(parser)
    _add_artifacts(parser)
    _add_experiment(parser)
    parser.add_argument(
        "--planning",
        type=file_path,
        action="append",
        default=[],
        metavar="FILE",
        help="planning.json of a study: writes the study's report, tables and figures instead of the page; "
        "repeatable for its parts",
    )
    parser.add_argument(
        "--out",
        type=file_path,
        default=Path("results/report"),
        help="folder to write to (default: results/report)",
    )
    parser.add_argument(
        "--ui-url",
        default="http://127.0.0.1:5000",
        help="address of the MLflow UI, for links (default: %(default)s)",
    )
    parser.add_argument(
        "--curves",
        type=file_path,
        help="folder with curve.json files of `bitrank plan --budgets`, in itself or below; those of a task "
        f"and model of the report are drawn beside its arms (default: {_CURVES}, if it exists)",
    )
    add_folder(parser)


def add_paper(commands: Any) -> None:
    parser = add_command(
        commands,
        "paper",
        "write the paper's numbers, tables, figures and claims from the store",
        PAPER,
        _paper,
    )
    _add_store(parser)
    _add_artifacts(parser)
    _add_experiment(parser)
    parser.add_argument(
        "--configs",
        type=comma_separated,
        default=list(DEFAULT_CONFIGS),
        help=f"configs to include (default: {','.join(DEFAULT_CONFIGS)})",
    )
    parser.add_argument(
        "--planners",
        type=file_path,
        action="append",
        default=[],
        metavar="FOLDER",
        help="results of a study of planners, for a table and a figure of its own; repeatable",
    )
    parser.add_argument(
        "--claims",
        type=file_path,
        action="append",
        default=[],
        metavar="FOLDER",
        help="results of a study whose findings complete the table of published claims; repeatable",
    )
    parser.add_argument(
        "--rivals",
        type=file_path,
        metavar="FOLDER",
        help="comparisons with the allocations of other tools, for a table of its own",
    )
    parser.add_argument(
        "--out",
        type=file_path,
        default=Path("paper/generated"),
        help="folder to write to (default: paper/generated)",
    )


def add_evidence(commands: Any) -> None:
    parser = add_command(
        commands,
        "evidence",
        "write the results of an experiment as Parquet files that report, paper and sql read like a store",
        EVIDENCE,
        _evidence,
    )
    parser.add_argument(
        "--store",
        type=location,
        action="append",
        help="folder of a store or of a bundle, or a sqlite:/// or postgresql:// URI (default: runs); "
        "repeatable for the parts of one experiment",
    )
    _add_artifacts(parser)
    _add_experiment(parser)
    parser.add_argument(
        "--out",
        type=file_path,
        default=Path("results/evidence"),
        help="folder to write to; an earlier bundle in it is replaced (default: results/evidence)",
    )


def _add_store(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--store",
        type=location,
        default="runs",
        help="folder of the store or of a bundle, or a sqlite:/// or postgresql:// URI (default: runs)",
    )


def _add_artifacts(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--artifacts",
        type=file_path,
        metavar="FOLDER",
        help="files of runs that a tracking server stored: its --artifacts-destination, mounted or copied "
        "(default: artifacts in the store's folder)",
    )


def _add_experiment(parser: argparse.ArgumentParser) -> None:
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--experiment", help="name of the experiment (default: the only one in the store)")
    group.add_argument("--profile", help=f"the experiment of a profile: {', '.join(PROFILES)}")


def add_sql(commands: Any) -> None:
    parser = add_command(
        commands, "sql", "query the store with one SQL statement (DuckDB), read-only", SQL, _sql
    )
    parser.add_argument("statement", help="one statement over the views listed below")
    parser.add_argument(
        "--format",
        choices=SQL_FORMATS,
        default=SQL_FORMATS[0],
        help="output format (default: table)",
    )
    parser.add_argument(
        "--store",
        type=location,
        default="runs",
        help="folder of the store, or a sqlite:/// or postgresql:// URI (default: runs)",
    )
    _add_artifacts(parser)


def _report(arguments: argparse.Namespace) -> int:
    from bitrank_analysis import load_study, open_store
    from bitrank_analysis.report import collect, planners_report, write

    if arguments.planning:
        experiment, planning = _experiment(arguments), arguments.planning
        print(planners_report(arguments.store, experiment, planning, arguments.out, arguments.artifacts))
        return 0
    found = load_study(open_store(arguments.store, arguments.artifacts), _experiment(arguments))
    report = collect(found, arguments.ui_url, _curves(arguments.curves))
    page = write(report, arguments.out)
    written = write_notes(found, report, arguments.notes)
    notice = [report.notice] if report.notice else []
    notes = [f"notes: {len(written)} new in {arguments.notes}"] if written else []
    print("\n\n".join([*notice, *report.verdict, *notes, f"report: {page.resolve()}"]))
    return 0


def _curves(folder: Path | None) -> list[BudgetCurve]:
    """Curves in ``folder``; None is the default folder, which may be absent.

    Raises :class:`UserError` for a folder without a curve of a measured task.
    """
    from bitrank_analysis import read_curves

    curves = read_curves(_CURVES if folder is None else folder)
    if folder is not None and not curves:
        raise UserError(
            f"{folder} has no curve.json with a plan for a task: expected the folder of "
            "`bitrank plan --task … --budgets … --save FOLDER`, or one above it"
        )
    return curves


def _paper(arguments: argparse.Namespace) -> int:
    from bitrank_analysis import open_store
    from bitrank_analysis.paper import write_paper

    folder = write_paper(
        open_store(arguments.store, arguments.artifacts),
        arguments.out,
        _experiment(arguments),
        arguments.configs,
        planners=arguments.planners,
        published=arguments.claims,
        rivals=arguments.rivals,
    )
    print(f"paper inputs: {folder}")
    return 0


def _evidence(arguments: argparse.Namespace) -> int:
    from bitrank_analysis import load_study, open_store, without_predictions, write_bundle

    stores = arguments.store or ["runs"]
    folder = write_bundle(
        stores, arguments.out, _experiment(arguments), _print_notice, artifacts=arguments.artifacts
    )
    kept = load_study(open_store(str(folder)))
    if lacking := without_predictions(kept):
        why = next(iter(lacking.values()))
        print(f"{len(lacking)} of {len(kept.runs)} finished runs have no predictions in the bundle: {why}")
    mib = sum(path.stat().st_size for path in folder.iterdir()) / 2**20
    digest = json.loads((folder / "evidence.json").read_text(encoding="utf-8"))["digest"]
    print(f"evidence: {folder.resolve()} ({mib:.1f} MiB, digest {digest[:12]})")
    return 0


def _print_notice(text: str) -> None:
    print(f"bitrank: {text}", file=sys.stderr)


def _experiment(arguments: argparse.Namespace) -> str | None:
    return f"bitrank-{find_profile(arguments.profile).name}" if arguments.profile else arguments.experiment


def _sql(arguments: argparse.Namespace) -> int:
    from bitrank_analysis import query

    print(query(arguments.store, arguments.statement, arguments.format, arguments.artifacts), end="")
    return 0
