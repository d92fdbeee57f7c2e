"""Training settings outside the definition of an arm: find runs with other than the usual ones.

Runs of one task that differ in these settings can be compared only if the reader knows it.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

import duckdb
import pandas as pd

# Fields of a spec that describe how a run was trained and evaluated, not which arm it belongs to. Runs of one
# task share them. Fields that change only rounding, speed or memory are left out.
SETTINGS = (
    "model",
    "steps",
    "epochs",
    "batch_size",
    "accumulation",
    "learning_rate",
    "warmup",
    "weight_decay",
    "clip",
    "dropout",
    "adapter_dropout",
    "adapter_scale",
    "scale_policy",
    "max_length",
    "special_tokens",
    "text_column",
    "label_column",
    "test_windows",
    "validation_windows",
    "eval_every",
    "quant_backend",
    "dtype",
)
# Fields that decide which examples, tokens or answers a run is tested on, and by which model.
EVALUATION = (
    "model",
    "kind",
    "max_length",
    "special_tokens",
    "text_column",
    "label_column",
    "test_windows",
)
# Fields that belong to an arm and that a run may override: runs of one arm and task share them.
ARM_SETTINGS = ("arm", "rank", "init_r", "target_r", "init", "init_rounds", "quantizer", "shrink")


def unusual_settings(
    database: duckdb.DuckDBPyConnection, runs: pd.DataFrame, chosen: Collection[str] = ()
) -> dict[str, str]:
    """run_id → the settings that differ from the usual ones, such as ``steps=20``; "" for none.

    The usual settings are those of most runs of the task, and those of an arm, such as its rank, of most runs
    of the arm in the task; of two equally frequent sets, that of the newest run. ``runs`` has the columns
    run_id, task and config, oldest first. Settings of ``chosen`` were chosen for each arm, and are not usual
    or unusual.
    """
    shared = tuple(key for key in SETTINGS if key not in chosen)
    found = _settings(database)
    unusual = dict.fromkeys(runs["run_id"], "")
    for columns, keys in ((["task"], shared), (["task", "config"], ARM_SETTINGS)):
        for _, group in runs.groupby(columns):
            # Runs with the task's usual settings define those of their arm, where there are any.
            usual_first = sorted(group["run_id"], key=lambda run_id: unusual[run_id] == "")
            by_run = {run_id: _chosen(found.get(run_id, {}), keys) for run_id in usual_first}
            for run_id, different in _different(by_run, keys).items():
                unusual[run_id] = ", ".join(filter(None, [unusual[run_id], different]))
    return unusual


def differences(
    database: duckdb.DuckDBPyConnection, run_id: str, others: Sequence[str], keys: Sequence[str]
) -> dict[str, str]:
    """Run of ``others`` → its settings of ``keys`` that differ from those of ``run_id``; "" for none."""
    found = _settings(database)
    first = _chosen(found.get(run_id, {}), keys)
    own = {other: _chosen(found.get(other, {}), keys) for other in others}
    return {other: _named(values, first, keys) for other, values in own.items()}


def _chosen(values: Mapping[str, str], keys: Sequence[str]) -> dict[str, str]:
    """The values of ``keys`` that are set: a field left open is equal to one that a spec lacks."""
    return {key: values[key] for key in keys if values.get(key, "None") != "None"}


def _different(by_run: Mapping[str, dict[str, str]], keys: Sequence[str]) -> dict[str, str]:
    """run_id → ``key=value`` of each value that differs from the most frequent set.

    Of two equally frequent sets, that of the last run counts.
    """
    hashable = [tuple(sorted(values.items())) for values in reversed(list(by_run.values()))]
    usual = dict(Counter(hashable).most_common(1)[0][0])
    return {run_id: _named(values, usual, keys) for run_id, values in by_run.items()}


def _named(values: Mapping[str, str], usual: Mapping[str, str], keys: Sequence[str]) -> str:
    """``key=value`` of each of ``keys`` whose value differs from the usual one."""
    return ", ".join(f"{key}={values.get(key, 'unset')}" for key in keys if values.get(key) != usual.get(key))


def _settings(database: duckdb.DuckDBPyConnection) -> dict[str, dict[str, str]]:
    """run_id → settings by name, from the run's spec; from MLflow's params if the spec cannot be read."""
    found: dict[str, dict[str, str]] = {}
    keys = (*dict.fromkeys((*SETTINGS, *ARM_SETTINGS, *EVALUATION)), "model_digest")
    names = ", ".join(f"'{name}'" for name in keys)
    rows = database.sql(f"SELECT run_id, key, value FROM params WHERE key IN ({names})").fetchall()
    for run_id, key, value in rows:
        found.setdefault(run_id, {})[key] = value
    for run_id, spec in database.sql("SELECT run_id, spec FROM specs").fetchall():
        values = json.loads(spec)
        found[run_id] = {**found.get(run_id, {}), **{key: str(values[key]) for key in keys if key in values}}
    for values in found.values():
        if "model_digest" in values:
            _name_by_content(values)
        if "arm" in values:  # two plan files of one name are two arms
            values["arm"] = hashlib.sha256(values["arm"].encode()).hexdigest()[:6]
    return found


def _name_by_content(values: dict[str, str]) -> None:
    """Identify a local model folder by its content digest, because its path may differ between runs."""
    digest = values.pop("model_digest")
    if digest.startswith("content:"):
        values["model"] = digest[: len("content:") + 12]
