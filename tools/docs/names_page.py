"""``reference/names.md``: all named choices, generated from the registries."""

from __future__ import annotations

import importlib

from cells import table
from find import find

_SHAPE = (768, 768)


def names_page() -> str:
    """The page as Markdown."""
    parts = [
        "# Names",
        "",
        "Everything that a command line or a plan file chooses by name, generated from the registries",
        "(`make reference` renews this page).",
        "",
        *_configs(),
        *_profiles(),
        *_formats(),
        "",
        *_quantizers(),
        *_backends(),
        *_ranks(),
        *_planners(),
        *_runtimes(),
        *_tasks(),
    ]
    return "\n".join(parts) + "\n"


def _configs() -> list[str]:
    configs = find("bitrank.spec.configs:CONFIGS")
    rows = []
    for name, config in configs.items():
        request = config.as_data().get("request")
        if request:
            planned = f"planner `{request['planner']}`, budget `{request['budget']}`"
            rules = (planned, planned)
        else:
            rules = (f"`{config.precision}`", f"`{config.rank}`")
        rows.append((f"`{name}`", config.about, *rules))
    head = ("name", "what it is", "precision rule", "rank rule")
    return ["## Configs", "", "`--config`, `--configs`.", "", *table(head, rows)]


def _profiles() -> list[str]:
    rows = []
    for name, profile in find("bitrank.spec.profiles:PROFILES").items():
        tasks = ", ".join(f"`{task}`" for task in profile.tasks)
        rows.append((f"`{name}`", profile.about, tasks, ", ".join(str(seed) for seed in profile.seeds)))
    return ["## Profiles", "", "`--profile`.", "", *table(("name", "what it is", "tasks", "seeds"), rows)]


def _formats() -> list[str]:
    formats = find("bitrank_quant:FORMATS")
    size = _SHAPE[0] * _SHAPE[1]
    rows = []
    for name, fmt in formats.items():
        stored = 8 * fmt.nbytes(_SHAPE) / size
        rows.append((f"`{name}`", fmt.about, str(fmt.bits), str(fmt.block or "–"), f"{stored:.3f}"))
    head = ("name", "stored", "bits of a code", "block", "stored bits a weight, 768 × 768")
    families = find("bitrank_quant:FAMILIES")
    return [
        "## Number formats",
        "",
        "In plan files, `--formats` and `--pin`. Besides these names: "
        + ", ".join(f"`{grammar}`" for grammar in families)
        + ".",
        "",
        *table(head, rows),
    ]


def _quantizers() -> list[str]:
    quantizers = find("bitrank_quant:QUANTIZERS")
    rows = []
    for name, quantizer in quantizers.items():
        moments = "required" if quantizer.needs_moments else "used" if quantizer.uses_moments else "–"
        rows.append((f"`{name}`", quantizer.about, moments))
    head = ("name", "what it chooses", "second moments of the inputs")
    return ["## Quantizers", "", "In plan files and `--quantizer`.", "", *table(head, rows)]


def _backends() -> list[str]:
    registries = ("BACKENDS", "OVERRIDES", "FORMATS")
    backends, overrides, formats = (find(f"bitrank_quant:{name}") for name in registries)
    served = []
    for name, backend in backends.items():
        names = [text for text, fmt in formats.items() if backend.serves(fmt)]
        served.append((f"`{name}`", backend.about, ", ".join(backend.devices), ", ".join(names)))
    shown = []
    for name, entry in overrides.items():
        backend = entry.backend or "the first that serves it"
        shown.append((f"`{name}`", entry.about, entry.format or "the plan's", backend, entry.device or "any"))
    return [
        "## Backends",
        "",
        "In order of preference.",
        "",
        *table(("name", "what it is", "devices", "formats"), served),
        "## Backend overrides",
        "",
        "`--quant-backend`.",
        "",
        *table(("name", "meaning", "format of low-bit matrices", "backend", "device"), shown),
    ]


def _ranks() -> list[str]:
    registries = (
        "bitrank.spec.named_rank_rules:RANK_RULES",
        "bitrank_adapters:SCALE_POLICIES",
        "bitrank.spec.inits:INITS",
        "bitrank.spec.learning:LEARNING",
    )
    rules, policies, inits, learning = (
        [(f"`{name}`", entry.about) for name, entry in find(registry).items()] for registry in registries
    )
    return [
        "## Rank rules",
        "",
        "`rank_rule` in a plan file.",
        "",
        *table(("name", "what it is"), rules),
        "## Scale policies",
        "",
        "`--set scale_policy=`: the scale of an adapter as a function of its rank.",
        "",
        *table(("name", "what it is"), policies),
        "## Adapter initializations",
        "",
        "`--set init=` of a run, `--init` of a plan.",
        "",
        *table(("name", "adapters start from"), inits),
        "## Learning costs",
        "",
        "`bitrank plan --learning`.",
        "",
        *table(("name", "what it adds to a plan's costs"), learning),
    ]


def _planners() -> list[str]:
    planners = find("bitrank.planning.planners:PLANNERS")
    searches = find("bitrank_planner:SEARCHES") | find("bitrank.planning.race:RACES")
    studies = find("bitrank.planning.planner_studies:STUDIES")
    executors = find("bitrank.execution.registry:EXECUTORS")
    exports = find("bitrank.export.registry:EXPORTS")
    rules = importlib.import_module("bitrank.planning.rules_of_thumb")
    rows = []
    for name, study in studies.items():
        rows.append((f"`{name}`", study.about, study.reference, ", ".join(study.budgets)))
    where = [(f"`{name}`", executor.about) for name, executor in executors.items()]
    return [
        "## Planners",
        "",
        "`bitrank plan --planner`. Those of the second table evaluate plans by short trainings.",
        "",
        f"Rules of thumb for formats take `{rules.HIGH}` as the higher and `{rules.LOW}` as the lower one;",
        f"`three_bits_on_least_sensitive` has `{rules.LOW}` and `{rules.THREE_BITS}`. Ranks are as large",
        "as the budget allows. Rules of thumb for ranks have one format everywhere: that with the most bits",
        "that leaves a mean rank of at least one.",
        "",
        *table(("name", "plan"), [(f"`{name}`", entry.about) for name, entry in planners.items()]),
        *table(("name", "search"), [(f"`{name}`", entry.about) for name, entry in searches.items()]),
        "",
        "## Studies of planners",
        "",
        *table(("name", "question", "reference", "budgets"), rows),
        "## Executors",
        "",
        *table(("name", "where runs are executed"), where),
        "## Export targets",
        "",
        "`bitrank export --to`.",
        "",
        *table(("name", "result"), [(f"`{name}`", target.about) for name, target in exports.items()]),
    ]


def _runtimes() -> list[str]:
    runtimes = find("bitrank.planning.restrictions:RUNTIMES")
    ties = find("bitrank.planning.restrictions:TIES")
    stored = []
    for name, entry in runtimes.items():
        formats = ", ".join(f"`{fmt}`" for fmt in entry.formats)
        stored.append((f"`{name}`", entry.about, formats or "the default ones"))
    return [
        "## Runtimes",
        "",
        "`bitrank plan --for`: formats that the runtime stores in the planned bytes.",
        "",
        *table(("name", "stores", "offered without `--formats`"), stored),
        "## Ties",
        "",
        "`bitrank plan --tie`: matrices that share one format.",
        "",
        *table(("name", "matrices"), [(f"`{name}`", entry.about) for name, entry in ties.items()]),
    ]


def _tasks() -> list[str]:
    tasks, assets = find("bitrank_data:TASKS"), find("bitrank_data:ASSETS")
    kinds = []
    for name, kind in find("bitrank.spec.task_kinds:TASK_KINDS").items():
        kinds.append((f"`{name}`", kind.metric.name, f"`eval/{kind.metric.key}`", f"`{kind.auto_model}`"))
    rows = [(f"`{name}`", str(asset.megabytes)) for name, asset in assets.items()]
    text_scores = find("bitrank.run.text_scores:TEXT_SCORES")
    scores = [(f"`{name}`", score.about) for name, score in text_scores.items()]
    return [
        "## Tasks",
        "",
        ", ".join(f"`{name}`" for name in tasks)
        + ", or the path of a file or folder ([Own data and models](../guides/own-data-and-models.md)).",
        "",
        "## Kinds of tasks",
        "",
        "A task is of one kind, which decides metric and model class.",
        "",
        *table(("name", "metric", "logged as", "model class of transformers"), kinds),
        "## Scores of generated texts",
        "",
        "Computed for kinds of tasks whose runs generate texts.",
        "",
        *table(("name", "what it is"), scores),
        "## Assets",
        "",
        "Fetched from PyPI or npm by exact version and hash: [Models and data](../data.md).",
        "",
        *table(("name", "MB"), rows),
    ]
