"""Cost of a store at a thousand and at a hundred thousand runs.

    python benchmarks/scaling.py [--template runs] [--runs 100,1000,5000] [--writers 1,4,16] [--each 32]

Two finished runs of the laptop profile, one per task, are written repeatedly by the code of real runs
(`replay.py`): into the default SQLite store, through MLflow's tracking server on SQLite, and through that
server on Postgres. Measured are the server's load with several concurrent writers, the bytes per run, and the
time to list and open the store. Larger stores are made from these runs by copying rows in SQL, and a line
through the measured points is extrapolated to 100,000 runs. Without Postgres (`apt-get install postgresql`)
its columns are missing.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from growing import SIZES, copy_runs, database_bytes, draw
from harness import RESULTS, SideFailed, write_section
from reading import read_times
from replay import Load, Template, load, read_template
from scaling_report import LOAD_HEAD, Found, load_cells, report_text
from servers import Server, postgres, postgres_programs, tracking_server

LEVELS = (1, 4, 16)
STORES = DIRECT, SERVED, POSTGRES = ("sqlite", "server on sqlite", "server on postgres")


@dataclass
class Store:
    """One way to store runs: URI for writers, database URL for SQL, artifacts, and server processes."""

    name: str
    uri: str
    database: str
    artifacts: Path
    servers: dict[str, Server] = field(default_factory=dict)

    def cpu_seconds(self) -> dict[str, float]:
        return {name: server.cpu_seconds() for name, server in self.servers.items()}


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that context managers stop the servers
    arguments = _parser().parse_args()
    here = _here()
    with tempfile.TemporaryDirectory(prefix="bitrank-scaling-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        templates = _templates(arguments.template, folder)
        found = Found()
        for store in _stores(folder, arguments.stores):
            _measure(store, templates, arguments, found)
        text = report_text(here, templates, found)
    draw(
        found.sizes,
        {name: {runs: one["cpu"] for runs, one in points.items()} for name, points in found.reads.items()},
    )
    write_section("scaling", text, arguments.results)
    failed = [
        f"{name}, {writers} writers: {done}"
        for (name, writers, _), done in found.loads.items()
        if isinstance(done, str)
    ]
    print(*failed, sep="\n", file=sys.stderr)
    return 1 if failed else 0


def _here() -> str:
    """Machine and library versions; no matrix-product peak, since nothing here multiplies."""
    from importlib.metadata import version

    from bitrank.process.hardware import hardware

    programs = postgres_programs()
    done = (
        subprocess.run([programs / "postgres", "--version"], capture_output=True, text=True, check=True)
        if programs
        else None
    )
    database = done.stdout.strip() if done else "no Postgres"
    libraries = f"MLflow {version('mlflow')}, SQLite {sqlite3.sqlite_version}, {database}"
    return f"{hardware('cpu')}; {libraries}; load before the start {os.getloadavg()[0]:.1f}."


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--template",
        type=Path,
        help="folder of a store whose finished runs, one a task, are taken (default: made now)",
    )
    parser.add_argument(
        "--runs",
        type=_numbers,
        default=SIZES,
        help=f"sizes of the store (default: {','.join(map(str, SIZES))})",
    )
    parser.add_argument(
        "--writers",
        type=_numbers,
        default=LEVELS,
        help=f"writers at once (default: {','.join(map(str, LEVELS))})",
    )
    parser.add_argument(
        "--stores", type=_store_names, default=STORES, help=f"which of them (default: {','.join(STORES)})"
    )
    parser.add_argument(
        "--each", type=int, default=32, help="runs written with each number of writers (default: 32)"
    )
    parser.add_argument(
        "--results",
        type=Path,
        default=RESULTS,
        help="file whose section is replaced (default: benchmarks/RESULTS.md)",
    )
    return parser


def _store_names(text: str) -> tuple[str, ...]:
    names = tuple(part.strip() for part in text.split(","))
    if unknown := set(names) - set(STORES):
        raise argparse.ArgumentTypeError(
            f"expected some of {', '.join(STORES)}, got {', '.join(sorted(unknown))}"
        )
    return names


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(sorted(int(part) for part in text.split(",")))


def _templates(store: Path | None, folder: Path) -> list[Template]:
    """A finished run per task, with its checkpoint copied back from the artifacts as at the end of a run."""
    if store is None:
        store = folder / "template"
        arguments = [
            "matrix",
            "--configs",
            "Joint-3",
            "--seeds",
            "0",
            "--store",
            str(store),
            "--results",
            str(folder / "results"),
        ]
        subprocess.run([sys.executable, "-m", "bitrank", *arguments], check=True)
    found: dict[str, Template] = {}
    for path in sorted((store / "work").glob("*/result.json")):
        template = read_template(path.parent)
        found.setdefault(template.spec.task_name, template)
    if not found:
        sys.exit(
            f"expected finished runs below {store / 'work'}, found none; "
            "give the folder of another store with --template"
        )
    return [_restored(template, store, folder / task) for task, template in sorted(found.items())]


def _restored(template: Template, store: Path, folder: Path) -> Template:
    """A copy of the run's folder as it was before its checkpoint was moved to the artifacts."""
    template_spec = (template.folder / "spec.json").read_text()
    kept = next(
        (
            path.parent
            for path in store.glob("artifacts/*/*/artifacts/spec.json")
            if path.read_text() == template_spec
        ),
        None,
    )
    if kept is None:
        sys.exit(f"the artifacts of {template.folder} are not below {store / 'artifacts'}")
    shutil.copytree(template.folder, folder)
    if (kept / "checkpoint").is_dir() and not (folder / "checkpoint").exists():
        shutil.copytree(kept / "checkpoint", folder / "checkpoint")
    return read_template(folder)


def _stores(folder: Path, names: Sequence[str]) -> Iterator[Store]:
    """The requested kinds of store, one after another; each one's servers end before the next begins."""
    if DIRECT in names:
        yield Store(
            DIRECT, _sqlite(folder / "direct"), _sqlite(folder / "direct"), folder / "direct" / "artifacts"
        )
    if SERVED in names:
        database, artifacts = _sqlite(folder / "served"), folder / "served" / "artifacts"
        with tracking_server(database, artifacts) as server:
            yield Store(SERVED, server.url, database, artifacts, {"mlflow": server})
    if POSTGRES not in names:
        return
    if (programs := postgres_programs()) is None:
        print("Postgres is not installed (Debian: apt-get install postgresql): left out", file=sys.stderr)
        return
    artifacts = folder / "postgres" / "artifacts"
    with postgres(programs) as database, tracking_server(database.url, artifacts) as server:
        yield Store(POSTGRES, server.url, database.url, artifacts, {"mlflow": server, "postgres": database})


def _sqlite(folder: Path) -> str:
    folder.mkdir(exist_ok=True)
    return f"sqlite:///{folder / 'mlflow.db'}"


def _measure(
    store: Store, templates: Sequence[Template], arguments: argparse.Namespace, found: Found
) -> None:
    """Write with every number of writers, read at every size, then write again to the largest store."""
    _write(store, templates, 1, len(templates), 10**6)  # creates the tables, warms up the server
    written = len(templates)
    for number, writers in enumerate(arguments.writers):
        found.loads[store.name, writers, written] = done = _write(
            store, templates, writers, arguments.each, number * 10_000
        )
        written += done.runs if isinstance(done, Load) else 0
    profile = templates[0].spec.profile
    kept = [path.stat().st_size for path in store.artifacts.rglob("*") if path.is_file()]
    found.artifacts[store.name] = sum(kept) / written
    for runs in arguments.runs:
        copy_runs(store.database, runs)
        found.sizes.setdefault((store.name, ""), {})[runs] = size = database_bytes(store.database) / 2**20
        print(f"{store.name}, {runs:,} runs: {size:.1f} MiB in tables", flush=True)
        for what, figures in read_times(
            store.uri, store.database, profile, lambda: sum(store.cpu_seconds().values())
        ).items():
            if figures["runs"] != runs:
                sys.exit(f"{what} of {store.name} found {figures['runs']} runs of {runs}")
            found.reads.setdefault((store.name, what), {})[runs] = figures
            took = f"{figures['seconds']:.2f} s, CPU {figures['cpu']:.2f} s, {figures['peak_mib']:,.0f} MiB"
            print(f"{store.name}, {runs:,} runs: {what}: {took}", flush=True)
    writers = arguments.writers[min(1, len(arguments.writers) - 1)]
    found.loads[store.name, writers, runs] = _write(store, templates, writers, arguments.each, 10**7)


def _write(store: Store, templates: Sequence[Template], writers: int, runs: int, first: int) -> Load | str:
    """The figures of the writers, or the reason of their failure."""
    try:
        done = load(store.uri, templates, writers, runs, first, store.cpu_seconds)
    except SideFailed as failure:
        print(f"{store.name}, {writers} writers: failed: {failure}", flush=True)
        return str(failure)
    cells = ", ".join(f"{name} {cell}" for name, cell in zip(LOAD_HEAD[3:], load_cells(done), strict=True))
    print(f"{store.name}, {writers} writers: {done.runs} runs in {done.seconds:.1f} s: {cells}", flush=True)
    return done


if __name__ == "__main__":
    sys.exit(main())
