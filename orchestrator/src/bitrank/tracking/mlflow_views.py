"""Saved views of the MLflow runs page: selected columns, order and charts.

MLflow stores a shared view as an experiment tag with compressed JSON. The format is not documented, so a
browser test checks it.
"""

from __future__ import annotations

import base64
import json
import math
import re
import time
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient

# Columns that fit next to the names in a browser window of common width; the UI sorts columns by name.
_FIRST = ("eval/acc", "eval/ppl", "mem/peak_mib", "model/mib")
_COST = (
    "model/mib",
    "model/bits",
    "lora/rank",
    "lora/percent",
    "mem/peak_mib",
    "speed/train_tok_s",
    "time/total_s",
)


# Final figures with three significant digits, which MLflow's own columns do not support: tag → metrics, of
# which the first available one is used.
SHOWN = {
    "quality": ("eval/acc", "eval/ppl"),
    "untrained": ("zero/acc", "zero/ppl"),
    "stored MiB": ("model/mib",),
    "bits": ("model/bits",),
    "peak MiB": ("mem/peak_mib",),
    "tokens/s": ("speed/train_tok_s",),
    "seconds": ("time/total_s",),
}
SHOWN_TAGS = ("config", *(f"shown {name}" for name in SHOWN))


def shown_figures(result: Mapping[str, float]) -> dict[str, str]:
    """Tags with the rounded figures of a complete run."""
    found = {name: next((result[key] for key in keys if key in result), None) for name, keys in SHOWN.items()}
    return {f"shown {name}": three_digits(value) for name, value in found.items() if value is not None}


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
    metrics: tuple[str, ...] = _FIRST
    params: tuple[str, ...] = ("config", "model")
    tags: tuple[str, ...] = ()
    order_by: str = "tags.`cell`"
    ascending: bool = True
    group_by: str | None = None
    chart: bool = False
    search: str = ""


def task_views(task: str, higher_is_better: bool) -> tuple[View, View]:
    """Views of one task: the leaderboard, best quality first, with rounded figures; and the charts."""
    metric = "eval/acc" if higher_is_better else "eval/ppl"
    quote = '"' if "'" in task else "'"
    search = f"tags.task = {quote}{task}{quote}"
    key = re.sub(r"[^A-Za-z0-9_.-]", "_", task)[:60]  # file names may have characters that tags may not
    board = View(
        f"task-{key}",
        f"{task}, best first",
        metrics=(),
        params=(),
        tags=SHOWN_TAGS,
        order_by=f"metrics.`{metric}`",
        ascending=not higher_is_better,
        search=search,
    )
    return board, View(f"charts-{key}", f"{task}, charts", (metric, *_FIRST[2:]), chart=True, search=search)


VIEWS = (
    View("leaderboard", "Leaderboard"),
    View(
        "by-accuracy",
        "Best accuracy first",
        ("eval/acc", "zero/acc", *_COST),
        order_by="metrics.`eval/acc`",
        ascending=False,
    ),
    View(
        "by-perplexity",
        "Best perplexity first",
        ("eval/ppl", "zero/ppl", *_COST),
        order_by="metrics.`eval/ppl`",
    ),
    View(
        "by-cell",
        "Mean over seeds, by cell",
        (*_FIRST, "model/bits", "lora/rank"),
        params=(),
        group_by="cell",
    ),
    View("charts", "Charts", chart=True),
)


def view_path(experiment_id: str, view: View = VIEWS[0]) -> str:
    """URL path of ``view`` on the tracking server."""
    mode = "&compareRunsMode=CHART" if view.chart else ""
    query = f"workflowType=machine_learning&viewStateShareKey={view.key}{mode}"
    return f"/#/experiments/{experiment_id}/runs?{query}"


def save_views(client: MlflowClient, experiment_id: str, name: str) -> None:
    """Write :data:`VIEWS` and the experiment's description if they are missing or differ."""
    tags = client.get_experiment(experiment_id).tags
    note = (
        f"{name}: bits and LoRA rank per weight matrix. Final figures at step 0, curves at their steps. "
        "Open a saved view above."
    )
    if tags.get("mlflow.note.content") != note:
        client.set_experiment_tag(experiment_id, "mlflow.note.content", note)
    _save(client, experiment_id, tags, VIEWS)


def save_task_views(client: MlflowClient, experiment_id: str, task: str, higher_is_better: bool) -> None:
    """Write the views of one task if they are missing or differ."""
    tags = client.get_experiment(experiment_id).tags
    _save(client, experiment_id, tags, task_views(task, higher_is_better))


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
