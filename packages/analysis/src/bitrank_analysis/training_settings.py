"""How a run was trained, apart from what its arm decides: runs of one task that differ in this must not be
compared unseen.
"""

from __future__ import annotations

from collections import Counter

import duckdb
import pandas as pd

# Params that say how, not which arm.
SETTINGS = (
    "model",
    "steps",
    "epochs",
    "batch_size",
    "learning_rate",
    "max_length",
    "adapter_scale",
    "quant_backend",
)


def unusual_settings(database: duckdb.DuckDBPyConnection, runs: pd.DataFrame) -> dict[str, str]:
    """By run_id, what sets a run apart from the settings that most runs of its task share, such as
    ``steps=20``; "" for none.

    ``runs`` has run_id and task, oldest first. Where two sets of settings are as frequent, that of the newest
    run is the usual one.
    """
    settings = _settings(database)
    unusual = {}
    for _, group in runs.groupby("task"):
        used = {run_id: settings.get(run_id, {}) for run_id in group["run_id"]}
        frozen = [tuple(sorted(values.items())) for values in reversed(used.values())]
        usual = dict(Counter(frozen).most_common(1)[0][0])
        for run_id, values in used.items():
            apart = [key for key in SETTINGS if values.get(key) != usual.get(key)]
            unusual[run_id] = ", ".join(f"{key}={values.get(key, 'unset')}" for key in apart)
    return unusual


def _settings(database: duckdb.DuckDBPyConnection) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    names = ", ".join(f"'{name}'" for name in (*SETTINGS, "model_digest"))
    for run_id, key, value in database.sql(
        f"SELECT run_id, key, value FROM params WHERE key IN ({names})"
    ).fetchall():
        found.setdefault(run_id, {})[key] = value
    for values in found.values():
        if "model_digest" in values:
            _name_by_content(values)
    return found


def _name_by_content(values: dict[str, str]) -> None:
    """A model folder of the user's own is known by its content: where it was makes no difference."""
    digest = values.pop("model_digest")
    if digest.startswith("content:"):
        values["model"] = digest[: len("content:") + 12]
