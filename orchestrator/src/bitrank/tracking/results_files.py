"""Results on disk, in addition to the store: JSON per cell, JSON of all runs, and a CSV summary."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bitrank_data import write_atomically
from filelock import FileLock

from bitrank.errors import UserError, disk_problem
from bitrank.spec.run_spec import RunSpec
from bitrank.spec.task_kinds import task_metrics

_ALL = "all_results.json"
# Bytes of a file's name: file systems take 255, and a temporary file has two dots and a process id more.
_LONGEST = 246
_TRIAL = "trying"  # with its dot as long as "results"
# Summary column → key of the result, after the columns of quality: size first, then cost.
_COSTS = {
    "model_mib": "model/mib",
    "bits_per_parameter": "model/bits",
    "trainable_parameters": "lora/params",
    "trainable_percent": "lora/percent",
    "active_rank": "lora/rank",
    "peak_mib": "mem/peak_mib",
    "import_mib": "mem/import_mib",
    "train_tokens_per_s": "speed/train_tok_s",
    "infer_tokens_per_s": "speed/infer_tok_s",
    "plan_s": "time/plan_s",
    "plan_peak_mib": "mem/plan_mib",
    "train_s": "time/train_s",
    "epoch_s": "time/epoch_s",
    "total_s": "time/total_s",
}


def summary_columns() -> dict[str, str]:
    """Summary column → key of the result: metrics of all kinds of tasks, then size and cost."""
    names = {metric.name.replace(" ", "_"): metric.key for metric in task_metrics()}
    return {
        **{name: f"eval/{key}" for name, key in names.items()},
        "loss_nats": "eval/loss",
        **{f"zero_shot_{name}": f"zero/{key}" for name, key in names.items()},
        **_COSTS,
    }


def write_results(runs: Sequence[tuple[RunSpec, dict[str, Any], str]], folder: Path) -> None:
    """Write ``results_<config>_<task>.json``, ``all_results.json`` and ``experiment_summary.csv`` for (spec,
    figures, state) triples.

    A name that another cell has, or that is too long for a file, ends in a hash. Results of earlier
    invocations with other specs are kept. Raises :class:`UserError` when ``folder`` cannot be written, or an
    earlier ``all_results.json`` is damaged: its other runs would be lost.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Another matrix with the same folder would otherwise replace the rows of this one by older ones.
        with FileLock(folder / ".all_results.lock"):
            _write(runs, folder)
    except OSError as error:
        raise _unwritable(folder, error) from error


def _write(runs: Sequence[tuple[RunSpec, dict[str, Any], str]], folder: Path) -> None:
    known = {entry["spec_id"]: entry for entry in _read_all(folder / _ALL)}
    for spec, figures, state in runs:
        known[spec.spec_id] = {
            "spec_id": spec.spec_id,
            "state": state,
            "spec": asdict(spec),
            "results": figures,
        }
    entries = list(known.values())
    write_atomically(folder / _ALL, json.dumps(entries, indent=1))
    names = _names((entry["spec"]["config"], _task(entry)) for entry in entries)
    for config, task in dict.fromkeys((spec.config, spec.task_name) for spec, _, _ in runs):
        cell = [e for e in entries if (e["spec"]["config"], _task(e)) == (config, task)]
        write_atomically(
            folder / names[config, task],
            json.dumps({"config": config, "task": task, "runs": cell}, indent=1),
        )
    write_atomically(folder / "experiment_summary.csv", _csv(entries))


def _names(cells: Iterable[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """Name of the file of every (config, task); the first of several cells keeps the plain name."""
    names: dict[tuple[str, str], str] = {}
    taken: set[str] = set()
    for cell in dict.fromkeys(cells):
        stem = f"results_{'_'.join(cell)}"
        name = f"{stem}.json"
        if name in taken or _size(name) > _LONGEST:
            digest = hashlib.sha256(json.dumps(cell).encode()).hexdigest()[:8]
            short = os.fsencode(stem)[: _LONGEST - len(f"-{digest}.json")].decode(errors="ignore")
            name = f"{short}-{digest}.json"
        taken.add(name)
        names[cell] = name
    return names


def _size(name: str) -> int:
    return len(os.fsencode(name))


def check_results(folder: Path, specs: Sequence[RunSpec] = ()) -> None:
    """Raise :class:`UserError` if results of ``specs`` cannot be written to ``folder``.

    Also if its earlier ones are damaged. Call it before training.
    """
    _read_all(folder / _ALL)
    names = _names((spec.config, spec.task_name) for spec in specs).values()
    longest = max((name.removeprefix("results") for name in names), key=_size, default="")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # As long as the longest name that follows; another command may check at the same time.
        trial = folder / f".{_TRIAL}{longest}"
        write_atomically(trial, "")
        trial.unlink(missing_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from error


def _unwritable(folder: Path, error: OSError) -> UserError:
    why = disk_problem(error) or error.strerror
    return UserError(f"cannot write results to {folder}: {why}; give another folder with --results")


def _csv(entries: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer, columns = csv.writer(text, lineterminator="\n"), summary_columns()
    writer.writerow(["config", "task", "seed", "profile", "model", "spec_id", "state", *columns])
    for entry in entries:
        spec, figures = entry["spec"], entry["results"]
        description = [spec["config"], _task(entry), spec["seed"], spec["profile"], spec["model"]]
        values = [figures.get(key, "") for key in columns.values()]
        writer.writerow([*description, entry["spec_id"], entry["state"], *values])
    return text.getvalue()


def _task(entry: dict[str, Any]) -> str:
    return RunSpec(**entry["spec"]).task_name


def _read_all(path: Path) -> list[dict[str, Any]]:
    """Entries of earlier invocations; none without the file."""
    if not path.exists():
        return []
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(entries, list):
            raise TypeError(f"it holds a {type(entries).__name__}, not a list")
        return [_entry(entry) for entry in entries]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path} is damaged ({error!r}): expected the results of earlier runs. The store still has them: "
            "move the file away, and repeat the command"
        ) from error


def _entry(entry: dict[str, Any]) -> dict[str, Any]:
    """``entry`` with the keys that this module reads; a missing or misshapen one raises an error."""
    found = {"spec_id": entry["spec_id"], "state": entry["state"], "spec": asdict(RunSpec(**entry["spec"]))}
    return {**found, "results": dict(entry["results"])}
