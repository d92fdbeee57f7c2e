"""Accuracy of the memory forecast: the peak that ``bitrank plan`` predicts, against the peak of the run.

    python benchmarks/forecast.py [--configs …] [--tasks …] [--steps N] [--set key=value]

The laptop profile's runs with fixed rules, six configs on two tasks, each in its own process by the executor
of ``bitrank run``, shortened to a few steps; both sides use the same spec. *measured* is the peak resident
set (VmHWM) of the process up to its last training step, including the test before training but not the one
after it.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from bitrank.forecast.forecast import Forecast, forecast
from bitrank.planning.budget import sizes_of
from bitrank.spec.configs import CONFIGS, Config, find_config
from bitrank.spec.make_spec import make_spec
from bitrank.spec.parse import parse_setting
from bitrank.spec.profiles import find_profile
from harness import (
    Figures,
    SideFailed,
    alternate,
    cores,
    figure_cell,
    machine,
    machine_line,
    options,
    report_failures,
    run_scripts,
    script,
    table,
    values,
    write_section,
)

STEPS = {"movie_sentences": 30, "wiki_articles": 6}  # each batch of articles has the same shape
# Windows per article: more take longer, but no more memory.
_WINDOWS = {"wiki_articles": {"test_windows": 1, "validation_windows": 1}}
_PARTS = ("imports", "stored", "adapters", "gradients", "optimizer", "activations", "overhead")
_NOTE = (
    "*imports* are libraries, tokenizer and tokens; *stored* the base; *overhead* compiled products, "
    "library pages and heap beyond live data. Both sides use the same shortened spec: a complete run on "
    "the sentences gets longer batches later."
)
# The formats and ranks of a planned arm are known after planning only.
RULE_CONFIGS = tuple(name for name, arm in CONFIGS.items() if isinstance(arm, Config))
_MIB = 2**20

Settings = dict[str, Any]
Run = tuple[str, str]  # task and config


def main() -> int:
    parser = options(__doc__, rounds=1, configs=RULE_CONFIGS)
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a setting of the runs, and of their forecast",
    )
    arguments = parser.parse_args()
    here, given = machine(cores()), dict(parse_setting(text) for text in arguments.set)
    runs = {
        (task, config): (config, task, settings(task, arguments.steps or STEPS[task], given))
        for task in arguments.tasks
        for config in arguments.configs
    }
    predicted_by = {key: predicted(*run) for key, run in runs.items()}
    found = alternate({key: partial(measured, *run) for key, run in runs.items()}, arguments.rounds)
    write_section(
        "forecast",
        f"## Forecast of memory\n\n{machine_line(here)}\n\n{_section(predicted_by, found)}",
        arguments.results,
    )
    return report_failures(found)


def settings(task: str, steps: int, given: Settings) -> Settings:
    """Overrides of the laptop profile for both sides: ``steps``, and nothing else that affects the peak."""
    return {"steps": steps, "eval_every": steps, "checkpoint_every": steps, **_WINDOWS.get(task, {}), **given}


def predicted(config: str, task: str, given: Settings) -> Forecast:
    """The forecast of a run with the formats and ranks of its config."""
    spec = make_spec(find_profile("laptop"), config, task, given)
    matrices = sizes_of(spec).outline.matrices
    found = find_config(spec.config, spec.plan, spec.tuned)
    blocks = [matrix for matrix in matrices if matrix.layer is not None and matrix.role != "embedding"]
    return forecast(spec, found.precision.assign_formats(matrices), found.rank.assign_ranks(blocks))


def measured(config: str, task: str, given: Settings) -> Figures:
    """Measured MiB of that run, on one thread as in the profile. Raises :class:`SideFailed`."""
    overrides = [argument for key, value in given.items() for argument in ("--set", f"{key}={value}")]
    found = run_scripts(
        script(
            "ours.py",
            "--config",
            config,
            "--task",
            task,
            "--steps",
            given["steps"],
            "--threads",
            1,
            "--until",
            "zero-shot",
            *overrides,
        )
    )[0]
    return {key: found[key] for key in ("import_mib", "ready_mib", "peak_mib")}


def _section(predicted_by: Mapping[Run, Forecast], found: Mapping[Run, Sequence[Figures]]) -> str:
    head = ("task", "config", *_PARTS, "predicted MiB", "measured MiB", "error")
    rows = [
        _row(task, config, predicted_by[task, config], found[task, config]) for task, config in predicted_by
    ]
    errors = [
        abs(error) for key in predicted_by if (error := _error(predicted_by[key], found[key])) is not None
    ]
    summary = (
        f"Largest error {max(errors):.1%}, mean {statistics.mean(errors):.1%} over {len(errors)} runs."
        if errors
        else "No run ended."
    )
    return f"{table(head, rows)}\n\n{summary} {_NOTE}"


def _row(task: str, config: str, predicted_by: Forecast, rounds: Sequence[Figures]) -> list[str]:
    error = _error(predicted_by, rounds)
    parts = [f"{getattr(predicted_by, part) / _MIB:,.0f}" for part in _PARTS]
    shown = "–" if error is None else f"{error:+.1%}"
    return [
        f"`{task}`",
        config,
        *parts,
        f"{predicted_by.peak / _MIB:,.0f}",
        figure_cell(rounds, "peak_mib"),
        shown,
    ]


def _error(predicted_by: Forecast, rounds: Sequence[Figures]) -> float | None:
    try:
        return predicted_by.peak / _MIB / statistics.median(values(rounds, "peak_mib")) - 1
    except SideFailed:
        return None


if __name__ == "__main__":
    sys.exit(main())
