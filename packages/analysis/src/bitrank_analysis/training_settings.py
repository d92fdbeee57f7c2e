"""Training settings outside the definition of an arm: find runs with other than the usual ones.

Runs of one task that differ in these settings can be compared only if the reader knows it.
"""

from __future__ import annotations

from collections import Counter

import duckdb
import pandas as pd

# MLflow params that describe how a run was trained, not which arm it belongs to.
SETTINGS = (
    "model",
    "steps",
    "epochs",
    "batch_size",
    "learning_rate",
    "max_length",
    "adapter_scale",
    "scale_policy",
    "quant_backend",
)


def unusual_settings(database: duckdb.DuckDBPyConnection, runs: pd.DataFrame) -> dict[str, str]:
    """run_id → the settings that differ from the usual ones of its task, such as ``steps=20``; "" for none.

    The usual settings are those of most runs of the task; of two equally frequent sets, that of the newest
    run. ``runs`` has the columns run_id and task, oldest first.
    """
    settings = _settings(database)
    unusual = {}
    for _, group in runs.groupby("task"):
        by_run = {run_id: settings.get(run_id, {}) for run_id in group["run_id"]}
        hashable = [tuple(sorted(values.items())) for values in reversed(by_run.values())]
        usual = dict(Counter(hashable).most_common(1)[0][0])
        for run_id, values in by_run.items():
            different = [key for key in SETTINGS if values.get(key) != usual.get(key)]
            unusual[run_id] = ", ".join(f"{key}={values.get(key, 'unset')}" for key in different)
    return unusual


def _settings(database: duckdb.DuckDBPyConnection) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    names = ", ".join(f"'{name}'" for name in (*SETTINGS, "model_digest"))
    rows = database.sql(f"SELECT run_id, key, value FROM params WHERE key IN ({names})").fetchall()
    for run_id, key, value in rows:
        found.setdefault(run_id, {})[key] = value
    for values in found.values():
        if "model_digest" in values:
            _name_by_content(values)
    return found


def _name_by_content(values: dict[str, str]) -> None:
    """Identify a local model folder by its content digest, because its path may differ between runs."""
    digest = values.pop("model_digest")
    if digest.startswith("content:"):
        values["model"] = digest[: len("content:") + 12]
