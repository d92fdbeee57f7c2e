"""Time and memory to read a store in every way that a command line does, each in its own process.

    python benchmarks/reading.py states|list|report STORE PROFILE

Prints one JSON line: runs found; wall time and processor time in seconds, without imports; peak MiB (VmHWM)
with imports.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from harness import Figures, run_scripts, script


def read_times(uri: str, database: str, profile: str, served: Callable[[], float]) -> dict[str, Figures]:
    """Seconds and peak memory of each way to read a store, each in a new process.

    ``uri`` is the store as users specify it, ``database`` its SQL database. ``served`` returns the processor
    time used by the store's servers so far; its increase is added to ``cpu``. A SQLite file behind a server
    is the same to SQL as one without, so it is not read again.
    """
    queries = {"states": uri}
    if uri == database:
        queries["list"] = uri
    if uri == database or not database.startswith("sqlite"):
        queries["report"] = database
    found = {}
    for query, store in queries.items():
        before = served()
        figures = run_scripts(script("reading.py", query, store, profile))[0]
        found[query] = {**figures, "cpu": figures["cpu"] + served() - before}
    return found


def _states(store: str, profile: str) -> int:
    """The first query of ``bitrank matrix``: the newest run of every spec."""
    from bitrank.tracking.mlflow_tracker import Tracker
    from bitrank.tracking.store import open_store

    return len(Tracker(open_store(store), store, profile).runs())


def _list(store: str, profile: str) -> int:
    """The query of ``bitrank list`` on a SQLite store."""
    from bitrank.tracking.run_state import read_runs
    from bitrank.tracking.store import Store

    database = Store.parse(store).database
    assert database is not None, "only a SQLite store is read directly"
    return len(read_runs(database, f"bitrank-{profile}"))


def _report(store: str, profile: str) -> int:
    """The start of ``bitrank report`` and ``bitrank sql``, and the widest view."""
    from bitrank_analysis import open_store

    with open_store(store) as found:
        return int(found.sql('SELECT count(*), sum("m.eval/loss") FROM wide').fetchall()[0][0])


_QUERIES: dict[str, tuple[Callable[[str, str], int], tuple[str, ...]]] = {
    "states": (_states, ("mlflow", "bitrank.tracking.mlflow_tracker")),
    "list": (_list, ("bitrank.tracking.run_state",)),
    "report": (_report, ("bitrank_analysis",)),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("query", choices=_QUERIES)
    parser.add_argument("store")
    parser.add_argument("profile")
    arguments = parser.parse_args()
    read, modules = _QUERIES[arguments.query]
    for module in modules:
        import_module(module)
    started, cpu = time.perf_counter(), time.process_time()
    runs = read(arguments.store, arguments.profile)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    peak = next(
        int(line.split()[1])
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmHWM")
    )
    print(json.dumps({"runs": runs, "seconds": seconds, "cpu": cpu, "peak_mib": peak / 1024}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
