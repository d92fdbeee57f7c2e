"""The section of ``RESULTS.md`` that :mod:`scaling` writes: loads by several writers, and growth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median, quantiles

from growing import HORIZON, fit
from harness import Figures, table
from replay import Load, Template
from servers import WORKERS


@dataclass
class Found:
    """Measurements: loads by (store, writers, runs in the store), sizes in MiB, reads by (store, query)."""

    loads: dict[tuple[str, int, int], Load | str] = field(default_factory=dict)
    sizes: dict[tuple[str, str], dict[int, float]] = field(default_factory=dict)
    reads: dict[tuple[str, str], dict[int, Figures]] = field(default_factory=dict)
    artifacts: dict[str, float] = field(default_factory=dict)


def report_text(here: str, templates: Sequence[Template], found: Found) -> str:
    """The section of ``RESULTS.md``; ``here`` is the sentence on the machine."""
    count, profile = len(templates), templates[0].spec.profile
    points, sent = (
        sum(values) / count for values in ([t.points for t in templates], [len(t.batches) for t in templates])
    )
    names = sorted(
        {path.name for template in templates for path in template.folder.iterdir()}
        - {".lock", "events.jsonl"}
    )
    artifacts = ", ".join(f"{name} {size / 2**20:.2f} MiB" for name, size in found.artifacts.items())
    about = (
        f"A run of profile {profile}, the mean of {', '.join(t.spec.run_name for t in templates)}: "
        f"{points:,.0f} metric points, sent in {sent:,.0f} batches while it trains. "
        f"Files of a run ({', '.join(names)}): {artifacts}."
    )
    writing = ["### Written by several at once", _loads(found), _LOADS]
    growing = ["### Growth", "![size and time against runs](figures/scaling.png)", _growth(found), _GROWTH]
    return "\n\n".join(["## A thousand runs, a hundred thousand", here, about, *writing, *growing])


_LOADS = f"""Runs are written without training in between, so this is the highest load that the store
supports. The server has {WORKERS} workers, as in docker/compose.yaml; writers, server and database share this
machine. Milliseconds are those of one `log_batch` call of a writer. CPU: seconds of processor time per run,
including its files."""
_GROWTH = f"""Measured at the sizes in the head; the line minimises relative errors; *off* is its largest
relative error. **At {HORIZON:,} runs the line is extrapolated, not measured.** *states*: the first query of
`bitrank matrix`; *list*: `bitrank list`; *report*: opening the store as views and querying the widest one, as
`bitrank report` and `bitrank sql` do first. New processes, imports not counted."""
LOAD_HEAD = (
    "store",
    "runs there",
    "writers",
    "runs an hour",
    "calls a run",
    "`log_batch` calls/s",
    "median ms",
    "p95 ms",
    "CPU mlflow",
    "CPU postgres",
    "CPU writer",
)


def _loads(found: Found) -> str:
    rows = [
        [name, f"{there:,}", str(writers), *load_cells(done)]
        for (name, writers, there), done in found.loads.items()
    ]
    return table(LOAD_HEAD, rows)


def load_cells(done: Load | str) -> list[str]:
    """The cells of :data:`LOAD_HEAD` after the first three: figures, or the reason of a failure."""
    if isinstance(done, str):
        return [f"failed: {done[:80]}", *["–"] * 7]
    p95 = quantiles(done.log_batch, n=20)[-1]
    cpu = [
        f"{done.cpu[name] / done.runs:.2f}" if name in done.cpu else "–"
        for name in ("mlflow", "postgres", "writers")
    ]
    return [
        f"{3600 * done.runs / done.seconds:,.0f}",
        f"{done.calls / done.runs:,.0f}",
        f"{len(done.log_batch) / done.seconds:,.0f}",
        f"{1000 * median(done.log_batch):,.1f}",
        f"{1000 * p95:,.1f}",
        *cpu,
    ]


def _growth(found: Found) -> str:
    rows = [
        _growth_cells(f"{name}: MiB in tables and indexes", points)
        for (name, _), points in found.sizes.items()
    ]
    for unit, key in (("CPU seconds", "cpu"), ("seconds", "seconds"), ("peak MiB", "peak_mib")):
        rows += [
            _growth_cells(f"{name}: {what}, {unit}", {runs: figures[key] for runs, figures in points.items()})
            for (name, what), points in found.reads.items()
        ]
    sizes = next(iter(found.sizes.values()))
    return table(
        (
            "what",
            *(f"{runs:,} runs" for runs in sizes),
            "line, n runs",
            "off",
            f"{HORIZON:,} runs, extrapolated",
        ),
        rows,
    )


def _growth_cells(name: str, points: dict[int, float]) -> list[str]:
    line = fit(points)
    measured = [f"{value:,.2f}" if value < 100 else f"{value:,.0f}" for value in points.values()]
    return [
        name,
        *measured,
        f"{line.fixed:.3g} + {line.each:.3g}·n",
        f"{100 * line.off:.0f} %",
        f"{line.at(HORIZON):,.0f}",
    ]
