"""Settings of ``--set``: what each command refuses, because another option or the command decides it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bitrank.errors import UserError, shortened
from bitrank.spec.make_spec import SETTABLE, refuse
from bitrank.spec.parse import parse_setting
from bitrank.spec.run_spec import FILE_OPTIONS, TUNED, RunSpec

_SEEDS = {"seed": "give --seeds"}
OF_RUN = {"plan": "give --plan FILE in place of --config", "seed": "give --seed"}
OF_MATRIX = {"plan": "it would replace every config; train it with `bitrank run --plan FILE`", **_SEEDS}
OF_PLAN = {
    "plan": "this command makes a plan; leave it out",
    "seed": "give --seed",
    "init": "costs are those of --init; give --init",
    "init_rounds": "costs are those of one round; give it to the run of the plan",
    **dict.fromkeys(TUNED, "the planner chooses the ranks; restrict them with --ranks, --max-rank or --pin"),
}
# A plan from a config.json alone reads neither a task nor weights.
OF_OUTLINE = {
    **OF_PLAN,
    "model": "it is the config.json of --model",
    "kind": "without a task, a config.json is planned as a language model; leave it out",
    **dict.fromkeys(("data", *FILE_OPTIONS), "a plan from a config.json reads no data; leave it out"),
}
OF_STUDY = {
    "plan": "the study makes the plans of its arms; train yours with `bitrank run --plan FILE`",
    **_SEEDS,
    **dict.fromkeys(("init", "init_rounds"), "each arm of a study has its own; choose arms with --arms"),
    **dict.fromkeys(
        TUNED, "each arm of a study has its own ranks within the budget; choose arms with --arms"
    ),
}


def parse_field(name: str, text: str) -> Any:
    """Parse the value of the option of field ``name``. Raises :class:`UserError`."""
    if name in SETTABLE:
        return parse_setting(f"{name}={text}")[1]
    from bitrank.spec.validation import parse_text

    return parse_text(RunSpec, name, text)


def parsed_settings(texts: Sequence[str], refused: Mapping[str, str]) -> dict[str, Any]:
    """Return the settings of ``--set``; of two values of a key the last one counts.

    Raises :class:`UserError` for a key in ``refused``.
    """
    refuse([text.partition("=")[0] for text in texts], refused)
    return dict(parse_setting(text) for text in texts)


def with_options(settings: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``settings`` and the values of the ``options`` that are given, which are not None.

    Raises :class:`UserError` for two values of one field: one of them would be ignored.
    """
    given = {key: value for key, value in options.items() if value is not None}
    for key, value in given.items():
        if settings.get(key, value) != value:
            raise UserError(
                f"{key} has two values, {shortened(value)} by its option and "
                f"{shortened(settings[key])} by --set; give one"
            )
    return {**settings, **given}
