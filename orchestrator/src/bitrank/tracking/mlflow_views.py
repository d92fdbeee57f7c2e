"""Saved views of the MLflow runs page: selected columns, order and charts.

MLflow stores a shared view as an experiment tag with compressed JSON. The format is not documented, so a
browser test checks it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import time
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bitrank.spec.task_kinds import TaskMetric, task_metrics

if TYPE_CHECKING:
    from mlflow import MlflowClient

# Costs that fit next to the names in a browser window of common width; the UI sorts columns by name.
_FIRST_COSTS = ("mem/peak_mib", "model/mib")
_COST = (
    "model/mib",
    "model/bits",
    "lora/rank",
    "lora/percent",
    "mem/peak_mib",
    "speed/train_tok_s",
    "time/total_s",
)


# Final figures with three significant digits, which MLflow's own columns do not support: tag → metric. A
# column shows about 11 characters of its heading.
_QUALITIES = {"quality": "eval", "untrained": "zero"}
_COSTS = {
    "stored MiB": "model/mib",
    "bits": "model/bits",
    "peak MiB": "mem/peak_mib",
    "tokens/s": "speed/train_tok_s",
    "seconds": "time/total_s",
}
SHOWN_TAGS = ("config", *_QUALITIES, *_COSTS)


def _qualities(prefix: str) -> tuple[str, ...]:
    """Logged metric of every kind of task under ``prefix``."""
    return tuple(f"{prefix}/{metric.key}" for metric in task_metrics())


def shown_figures(result: Mapping[str, float]) -> dict[str, str]:
    """Tags with the rounded figures of a complete run."""
    shown = {name: _qualities(prefix) for name, prefix in _QUALITIES.items()}
    shown |= {name: (key,) for name, key in _COSTS.items()}
    figures = {}
    for name, keys in shown.items():
        logged = [key for key in keys if key in result]
        if logged:
            figures[name] = three_digits(result[logged[0]])
    return figures


def three_digits(value: float) -> str:
    """Format with three significant digits: ``0.84675`` as ``0.847``, ``1234.5`` as ``1230``."""
    if not math.isfinite(value) or value == 0:
        return str(value)
    digits = 2 - math.floor(math.log10(abs(value)))
    return f"{round(value, digits):.{max(0, digits)}f}"


@dataclass(frozen=True)
class View:
    """One saved view: columns, order and grouping; ``chart`` selects the chart page."""

    key: str
    name: str
    metrics: tuple[str, ...] = ()
    params: tuple[str, ...] = ("config", "model")
    tags: tuple[str, ...] = ()
    order_by: str = "tags.`cell`"
    ascending: bool = True
    group_by: str | None = None
    chart: bool = False
    search: str = ""


def task_views(task: str, metric: TaskMetric) -> tuple[View, View]:
    """Views of one task: the leaderboard, best quality first, with rounded figures; and the charts."""
    quality = f"eval/{metric.key}"
    quote = '"' if "'" in task else "'"
    search = f"tags.task = {quote}{task}{quote}"
    key = _view_key(task)
    board = View(
        f"task-{key}",
        f"{task}, best first",
        metrics=(),
        params=(),
        tags=SHOWN_TAGS,
        order_by=f"metrics.`{quality}`",
        ascending=not metric.higher_is_better,
        search=search,
    )
    charts = View(f"charts-{key}", f"{task}, charts", (quality, *_FIRST_COSTS), chart=True, search=search)
    return board, charts


def _view_key(task: str) -> str:
    """``task`` as part of a tag's key, which takes fewer characters than a file's name; a hash tells tasks
    apart that differ only in the others.
    """
    key = re.sub(r"[^A-Za-z0-9_.-]", "_", task)[:60]
    return key if key == task else f"{key}-{hashlib.sha256(task.encode()).hexdigest()[:8]}"


def experiment_views() -> tuple[View, ...]:
    """The views of a whole experiment; each metric of a kind of task has one that orders by it."""
    first = (*_qualities("eval"), *_FIRST_COSTS)
    return (
        View("leaderboard", "Leaderboard", first),
        *(_by_metric(metric) for metric in task_metrics()),
        View(
            "by-cell",
            "Mean over seeds, by cell",
            (*first, "model/bits", "lora/rank"),
            params=(),
            group_by="cell",
        ),
        View("charts", "Charts", first, chart=True),
    )


def _by_metric(metric: TaskMetric) -> View:
    return View(
        f"by-{metric.name.replace(' ', '-')}",
        f"Best {metric.name} first",
        (f"eval/{metric.key}", f"zero/{metric.key}", *_COST),
        order_by=f"metrics.`eval/{metric.key}`",
        ascending=not metric.higher_is_better,
    )


def view_path(experiment_id: str, view: View) -> str:
    """URL path of ``view`` on the tracking server."""
    mode = "&compareRunsMode=CHART" if view.chart else ""
    query = f"workflowType=machine_learning&viewStateShareKey={view.key}{mode}"
    return f"/#/experiments/{experiment_id}/runs?{query}"


def save_views(client: MlflowClient, experiment_id: str, name: str) -> None:
    """Write :func:`experiment_views` and the experiment's description if they are missing or differ."""
    tags = client.get_experiment(experiment_id).tags
    note = (
        f"{name}: bits and LoRA rank per weight matrix. Final figures at step 0, curves at their steps. "
        "Open a saved view above."
    )
    if tags.get("mlflow.note.content") != note:
        client.set_experiment_tag(experiment_id, "mlflow.note.content", note)
    _save(client, experiment_id, tags, experiment_views())


def save_task_views(client: MlflowClient, experiment_id: str, task: str, metric: TaskMetric) -> None:
    """Write the views of one task if they are missing or differ."""
    tags = client.get_experiment(experiment_id).tags
    _save(client, experiment_id, tags, task_views(task, metric))


def saved_task_views(tags: Mapping[str, str]) -> list[View]:
    """Task views in the ``tags`` of an experiment, with key and name only."""
    views = []
    for tag in sorted(tags):
        key = tag.removeprefix("mlflow.sharedViewState.")
        if key != tag and key.startswith(("task-", "charts-")):
            views.append(View(key, json.loads(tags[tag])["name"], chart=key.startswith("charts-")))
    return views


def _save(client: MlflowClient, experiment_id: str, tags: Mapping[str, str], views: Iterable[View]) -> None:
    for view in views:
        key, state = f"mlflow.sharedViewState.{view.key}", _state(view)
        if state not in tags.get(key, ""):
            now = int(time.time() * 1000)
            client.set_experiment_tag(
                experiment_id,
                key,
                json.dumps({"name": view.name, "createdAt": now, "updatedAt": now, "state": state}),
            )


def _state(view: View) -> str:
    columns = (
        [f"metrics.`{m}`" for m in view.metrics]
        + [f"params.`{p}`" for p in view.params]
        + [f"tags.`{t}`" for t in view.tags]
    )
    group = {"aggregateFunction": "average", "groupByKeys": [{"mode": "tag", "groupByData": view.group_by}]}
    state = {
        "searchFilter": view.search,
        "orderByKey": view.order_by,
        "orderByAsc": view.ascending,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": columns,
        "columnOrder": [],
        "columnWidths": {},
        "runsHiddenMode": "SHOWALL",
        "viewMaximized": False,
        "runListHidden": False,
        "isAccordionReordered": False,
        "useGroupedValuesInCharts": True,
        "hideEmptyCharts": True,
        "groupBy": group if view.group_by else None,
        "groupsExpanded": {},
        "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
    }
    return "deflate;" + base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()
