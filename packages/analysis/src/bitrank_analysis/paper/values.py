"""Every number of the paper by name, such as ``movie_sentences/Joint-2/quality``."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from bitrank_analysis import phrasing
from bitrank_analysis.evidence import Evidence, config_order
from bitrank_analysis.metrics import METRICS
from bitrank_analysis.planned import best_other, pair
from bitrank_analysis.statistics.pareto import RESAMPLES as FRONT_RESAMPLES
from bitrank_analysis.statistics.signflips import SUBSETS
from bitrank_analysis.study import Study

_SPELLED = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_TAGS = ("hardware", "device", "dtype", "threads", "git_commit", "code", "dirty", "stored_as")
_PLACES = ("data", "plan")
# Column of an arm's row → its number format. The metric formats the columns of quality.
_COSTS: dict[str, Callable[[float], str]] = {
    "model_mib": lambda value: f"{value:,.1f}",
    "adapter_mib": lambda value: f"{value:,.1f}",
    "stored_mib": lambda value: f"{value:,.1f}",
    "bits": lambda value: f"{value:.2f}",
    "peak_mib": phrasing.whole,
    "import_mib": phrasing.whole,
    "adapter_params": phrasing.whole,
    "trainable_percent": lambda value: f"{value:.2f}",
    "rank": phrasing.whole,
    "seconds": phrasing.whole,
    "plan_s": phrasing.whole,
    "kept": lambda value: f"{value:.1f}",
    "kept_low": lambda value: f"{value:.1f}",
    "kept_high": lambda value: f"{value:.1f}",
}


def spelled(number: int) -> str:
    """Numbers up to ten as English words: ``2`` gives ``two``, ``12`` gives ``12``."""
    return _SPELLED[number] if 0 <= number < len(_SPELLED) else str(number)


def values(study: Study, evidence: Sequence[Evidence]) -> dict[str, str]:
    """Name → plain text.

    A value that was not measured has no name, so the paper cannot print it.
    """
    found = {**_study(study, evidence), **_statistics(evidence), **_tags(study), **_specs(study)}
    for task in evidence:
        found |= _task(task) | _arms(task) | _comparisons(task) | _factorial(task) | _planned_pairs(task)
    return found


def _study(study: Study, evidence: Sequence[Evidence]) -> dict[str, str]:
    runs, seeds = study.runs, sorted(set(study.runs["seed"]))
    configs = config_order(runs["config"])
    newest = (
        study.database.sql("SELECT run_id, started FROM runs")
        .df()
        .merge(runs[["run_id"]], on="run_id")["started"]
        .max()
    )
    counted = {"arms": len(configs), "tasks": len(evidence), "seeds": len(seeds)}
    return {
        "study/experiment": study.experiment,
        "study/profile": study.experiment.removeprefix("bitrank-"),
        "study/date": f"{newest:%-d %B %Y}",
        "study/runs": str(len(runs)),
        **{f"study/{name}": spelled(count) for name, count in counted.items()},
        "study/seed-list": phrasing.listed([str(seed) for seed in seeds]),
        f"study/{'one' if len(seeds) == 1 else 'several'}-seeds": spelled(len(seeds)),
        **{f"arm/{name}": name for name in configs},
        **{f"model/{name}": str(name) for name in sorted(set(runs["model"]))},
    }


def _statistics(evidence: Sequence[Evidence]) -> dict[str, str]:
    smallest = {
        task.metric: phrasing.margin(margin, task.metric) for task in evidence for margin in _margins(task)
    }
    return {
        "statistics/alpha": "5 %",
        "statistics/sign-flips": f"{SUBSETS:,}",
        "statistics/front-bootstrap": f"{FRONT_RESAMPLES:,}",
        **{
            f"statistics/margin/{key}": smallest.get(key, phrasing.margin(metric.margin, key))
            for key, metric in METRICS.items()
        },
    }


def _margins(task: Evidence) -> Iterable[float]:
    return [] if task.comparisons.empty else task.comparisons["margin"].dropna().unique()


def _tags(study: Study) -> dict[str, str]:
    """Machine, code and versions; several values are joined by commas if runs differ."""
    tags = (
        study.database.sql("SELECT run_id, key, value FROM tags")
        .df()
        .merge(study.runs[["run_id"]], on="run_id")
    )
    by_key = {str(key): sorted(set(group["value"]) - {""}) for key, group in tags.groupby("key")}
    tags = [*_TAGS, *(key for key in by_key if key.startswith("version."))]
    sentences = {key: by_key[key] for key in tags if by_key.get(key)}
    if "git_commit" in sentences:
        sentences["git_commit"] = sorted({commit[:12] for commit in sentences["git_commit"]})
    if "stored_as" in sentences:
        sentences["stored_as"] = sorted(
            {part for value in sentences["stored_as"] for part in value.split(", ")}
        )
    return {
        f"tag/{key.replace('version.', 'version/')}": ", ".join(several) for key, several in sentences.items()
    }


def _specs(study: Study) -> dict[str, str]:
    """Settings from ``spec.json``: those common to all runs of a task, and those common to all of an arm."""
    specs = study.database.sql("SELECT run_id, spec::VARCHAR AS spec FROM specs").df()
    if specs.empty:
        return {}
    read = specs.merge(study.runs[["run_id", "task", "config"]], on="run_id")
    read["spec"] = [flattened(json.loads(text)) for text in read["spec"]]
    found: dict[str, str] = {}
    for kind in ("task", "config"):
        for name, group in read.groupby(kind):
            prefix = f"spec/{name}" if kind == "task" else f"arm/{name}"
            found |= {
                f"{prefix}/{key}": value
                for key, value in _shared(group["spec"]).items()
                if (kind == "task") != key.startswith("arm/")
            }
    return {key.replace("/arm/", "/"): value for key, value in found.items()}


def flattened(data: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested JSON as ``a/b`` → text.

    Null, empty and false values are omitted, and so are local paths.
    """
    found: dict[str, str] = {}
    for key, value in data.items():
        if key in _PLACES:
            continue
        if isinstance(value, Mapping):
            found |= flattened(value, f"{prefix}{key}/")
        elif value is not None and value is not False and value not in ("", []):
            found[f"{prefix}{key}"] = f"{value:g}" if isinstance(value, float) else str(value)
    return found


def _shared(specs: pd.Series) -> dict[str, str]:
    """Fields with the same value in all ``specs``."""
    first, *others = list(specs)
    shared = dict(first)
    for other in others:
        shared = {key: value for key, value in shared.items() if other.get(key) == value}
    return shared


def _task(task: Evidence) -> dict[str, str]:
    named = {
        "n": phrasing.whole(task.arms["n"].iloc[0]),
        "metric": phrasing.name(task.metric),
        "kind": task.kind,
    }
    named |= {"model": str(task.runs["model"].iloc[0]), "unit": phrasing.unit(task.metric)}
    return {
        f"task/{task.task}": task.task,
        **{f"task/{task.task}/{key}": value for key, value in named.items()},
    }


def _arms(task: Evidence) -> dict[str, str]:
    found: dict[str, str] = {}
    for row in task.arms.to_dict("records"):
        name = f"{task.task}/{row['config']}"
        found |= {
            f"{name}/{key}": phrasing.quality(row[key], task.metric)
            for key in ("quality", "low", "high", "zero")
            if _known(row[key])
        }
        found |= {f"{name}/{key}": write(row[key]) for key, write in _COSTS.items() if _known(row.get(key))}
        if _known(row["plan_s"]) and _known(row["seconds"]):
            found[f"{name}/plan_share"] = f"{100 * row['plan_s'] / row['seconds']:.0f}"
        if row["config"] in task.planned and (best := best_other(task, row["config"])):
            found[f"{name}/best-other"] = best
    return found


def _planned_pairs(task: Evidence) -> dict[str, str]:
    """The comparison of each planned arm with the best other arm, in that direction."""
    found: dict[str, str] = {}
    for name in task.planned:
        best = best_other(task, name)
        row = pair(task, name, best) if best else None
        if row is None:
            continue
        changes = {key: phrasing.change(row[key], task.metric) for key in ("difference", "low", "high")}
        place = f"{task.task}/{name}/against/best-other"
        found |= {f"{place}/{key}": phrasing.signed(value, 2) for key, value in changes.items()}
        found[f"{place}/verdict"] = row["verdict"]
    return found


def _comparisons(task: Evidence) -> dict[str, str]:
    found: dict[str, str] = {}
    for row in task.comparisons.to_dict("records"):
        name = f"{task.task}/{row['candidate']}/against/{row['baseline']}"
        changes = ("difference", "low", "high", "seed_low", "seed_high", "detectable")
        found |= {
            f"{name}/{key}": phrasing.signed(phrasing.change(row[key], task.metric), 2)
            for key in changes
            if _known(row[key])
        }
        found |= {
            f"{name}/{key}": phrasing.p_value(row[key])
            for key in ("p", "p_holm", "tost_p_holm")
            if _known(row[key])
        }
        found[f"{name}/verdict"] = row["verdict"]
    return found


def _factorial(task: Evidence) -> dict[str, str]:
    found: dict[str, str] = {}
    for row in task.factorial.to_dict("records"):
        name = f"{task.task}/factorial/{row['effect']}"
        known = [key for key in ("estimate", "low", "high") if _known(row[key])]
        found |= {
            f"{name}/{key}": phrasing.signed(phrasing.change(row[key], task.metric), 2) for key in known
        }
        found |= {f"{name}/{key}": phrasing.p_value(row[key]) for key in ("p", "p_holm")}
        found[f"{name}/verdict"] = row["verdict"]
    return found


def _known(value: Any) -> bool:
    return isinstance(value, float) and not math.isnan(value)
