"""Saved views of the MLflow runs page, written into the experiment so that the UI opens on something worth seeing.

MLflow keeps a shared view as an experiment tag with compressed JSON. That form is not documented, so a browser test holds it.
"""

from __future__ import annotations

import base64
import json
import time
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient

# What fits beside the names in a browser window of usual width; the UI sorts columns by name.
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


@dataclass(frozen=True)
class View:
    """One saved view: which columns, in what order, grouped by what; ``chart`` opens it on the charts."""

    key: str
    name: str
    metrics: tuple[str, ...] = _FIRST
    params: tuple[str, ...] = ("config", "model")
    tags: tuple[str, ...] = ()
    order_by: str = "tags.`cell`"
    ascending: bool = True
    group_by: str | None = None
    chart: bool = False


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
    """The path of ``view`` behind the tracking server's address."""
    mode = "&compareRunsMode=CHART" if view.chart else ""
    return f"/#/experiments/{experiment_id}/runs?workflowType=machine_learning&viewStateShareKey={view.key}{mode}"


def save_views(client: MlflowClient, experiment_id: str, name: str) -> None:
    """Write every view of :data:`VIEWS` and the experiment's description, unless they are there as they should be."""
    tags = client.get_experiment(experiment_id).tags
    note = f"{name}: bits and LoRA rank per weight matrix. Final figures at step 0, curves at their steps. Open a saved view above."
    if tags.get("mlflow.note.content") != note:
        client.set_experiment_tag(experiment_id, "mlflow.note.content", note)
    for view in VIEWS:
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
        "searchFilter": "",
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
