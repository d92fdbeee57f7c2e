"""Make the spec of a run from a profile, a config or plan, a task, and settings; check its values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from bitrank_data import HUB_TASKS, FileOptions, is_path, open_task
from bitrank_quant import OVERRIDES

from bitrank.errors import UserError, unknown
from bitrank.spec.configs import CONFIGS, Arm, Config, PlannedArm, find_arm
from bitrank.spec.inits import INITS, PLANNED_INITS, Init
from bitrank.spec.inputs import data_digest, located, model_digest
from bitrank.spec.plan_file import plan_stem, valid_plan
from bitrank.spec.profiles import Profile
from bitrank.spec.rules import SIXTEEN, Sixteen
from bitrank.spec.run_spec import DIGESTS, FILE_OPTIONS, TUNED, RunSpec

# `--set key=value` cannot set these fields: they have their own options, or follow from other fields.
_FIXED = {"config", "task", "profile", "arm", *DIGESTS}
_BY_OPTION = ("plan", "seed")  # they replace the arms and seeds that a command was asked for
SETTABLE = tuple(f.name for f in fields(RunSpec) if f.name not in {*_FIXED, *_BY_OPTION})
_OVERRIDES = (*SETTABLE, *_BY_OPTION)


def make_spec(
    profile: Profile, config: str, task: str, overrides: Mapping[str, Any] | None = None
) -> RunSpec:
    """Make the spec of one run from the profile's defaults for this kind of task and ``overrides``.

    Raises :class:`UserError` (or the data package's error) for an unknown config, task or key, or a value out
    of range.
    """
    from bitrank.spec.validation import validate

    given = {key: value for key, value in (overrides or {}).items() if value is not None}
    for key in given:
        if key not in _OVERRIDES:
            raise unknown("key", key, _OVERRIDES)
    # Validate before opening paths: text that cannot be a path would raise an error of the operating system.
    validate(RunSpec, {"config": "-", "model": "-", "task": task, **given})
    task = located(task) if is_path(task) else task
    given |= {key: located(given[key]) for key in ("data", "plan", "model", "test_file") if key in given}
    check_data(given.get("data"), [task])
    options = FileOptions(**{key: given[key] for key in FILE_OPTIONS if key in given})
    source = open_task(task, given.get("data"), options, kind=given.pop("kind", None))
    plan = given.get("plan")
    name = name_of_plan(Path(plan)) if plan else config
    planned = _fields_of_plan(Path(plan)) if plan else {}
    tuned = {key: given[key] for key in TUNED if given.get(key, False) is not False}
    arm = find_arm(config, plan, tuned)
    chosen = {**profile.fields_for(source.kind, task), **_fields_of_arm(arm), **planned, **given}
    if "steps" in given and "epochs" not in given:
        chosen["epochs"] = None
    if "epochs" in given and "steps" not in given:
        chosen["steps"] = None
    _check_planned_init(name, arm, chosen)
    _check_combination(name, arm, chosen)
    chosen["data_digest"] = data_digest(task, chosen.get("data"), options.test_file)
    chosen["model_digest"] = model_digest(chosen["model"])
    data = arm.as_data()
    return check(RunSpec(config=name, task=task, profile=profile.name, kind=source.kind, arm=data, **chosen))


def refuse(settings: Iterable[str], reasons: Mapping[str, str]) -> None:
    """Raise :class:`UserError` for the first key of ``settings`` in ``reasons``, which say what to do."""
    for key in settings:
        if key in reasons:
            raise UserError(f"{key} is no setting here: {reasons[key]}")


def name_of_plan(path: Path) -> str:
    """The name of the arm of a plan file. Raises :class:`UserError` for the name of a config."""
    name = plan_stem(path)
    if name in CONFIGS:
        raise UserError(
            f"{path.name} is called as the config {name}, so the two would be one arm in every table; "
            "give the file another name"
        )
    return name


def _fields_of_arm(arm: Arm) -> dict[str, Any]:
    """Fields of a spec whose defaults an arm sets: its settings, or those of the request of a planned arm."""
    if isinstance(arm, PlannedArm):
        return {"init": arm.init, "quantizer": arm.quantizer}
    return dict(arm.settings)


def _check_planned_init(name: str, arm: Arm, chosen: Mapping[str, Any]) -> None:
    """Raise :class:`UserError` for an initialization whose benefit no planner predicts."""
    init = chosen.get("init", "default")
    if isinstance(arm, PlannedArm) and init in INITS and init not in PLANNED_INITS:
        raise UserError(
            f"{name} is planned for its initialization: expected init={' or '.join(PLANNED_INITS)}, got "
            f"{init}"
        )


def _check_combination(name: str, arm: Arm, chosen: Mapping[str, Any]) -> None:
    """Raise :class:`UserError` for an initialization or a format that the adapters of ``arm`` cannot have.

    One without an effect would be another arm's run under a name of its own.
    """
    init = INITS.get(chosen.get("init", "default"))
    _check_rounds(name, init, chosen)
    if not isinstance(arm, Config):
        return
    reason = None if init is None else arm.rank.refusal(init)
    if reason is not None:
        raise UserError(f"{name} does not combine with init={chosen['init']}: {reason}")
    override = OVERRIDES.get(chosen.get("quant_backend", "auto"))
    stays_whole = isinstance(arm.precision, Sixteen) or (override is not None and override.format == SIXTEEN)
    if init is not None and (init.splits or init.residual) and stays_whole:
        start = "is a part of a matrix whose rest is quantized" if init.splits else "repairs quantization"
        raise UserError(
            f"{name} does not combine with init={chosen['init']}: its matrices stay in 16 bits here, and "
            f"this start {start}; give init=default, or an arm and a quant_backend with fewer bits"
        )
    if arm.rank.own_formats and override is not None and override.format is not None:
        raise UserError(
            f"{name} does not combine with quant_backend={chosen['quant_backend']}, which replaces formats "
            f"by {override.format}: its adapters fit its own formats only; give quant_backend=auto"
        )


def _check_rounds(name: str, init: Init | None, chosen: Mapping[str, Any]) -> None:
    """Raise :class:`UserError` for rounds of an initialization that has none."""
    rounds = chosen.get("init_rounds", 1)
    if init is not None and rounds > 1 and not init.residual:
        with_rounds = ", ".join(key for key, known in INITS.items() if known.residual)
        raise UserError(
            f"{name} does not combine with init={chosen.get('init', 'default')} and init_rounds={rounds}: "
            f"this start has no rounds, expected one of {with_rounds}; give init_rounds=1 or one of these"
        )


def _fields_of_plan(path: Path) -> dict[str, Any]:
    """The fields of a spec whose defaults a plan file sets; those of a config that it names stay."""
    data = valid_plan(path)
    given: dict[str, Any] = {key: data[key] for key in ("init", "quantizer") if key in data}
    return given if data["rank_rule_of"] else {"init": "default", "quantizer": "rtn", **given}


def check(spec: RunSpec) -> RunSpec:
    """Return ``spec``. Raises :class:`UserError` for an invalid value or contradicting fields."""
    # Imported here: a run's own process does not validate, and pydantic would increase its measured memory.
    from bitrank.spec.validation import validate

    validate(RunSpec, vars(spec))
    _check_processes(spec)
    if (spec.steps is None) == (spec.epochs is None):
        raise UserError(f"give steps or epochs, not both; got steps={spec.steps} and epochs={spec.epochs}")
    return spec


def _check_processes(spec: RunSpec) -> None:
    if spec.processes > spec.batch_size:
        raise UserError(
            f"{spec.processes} processes cannot share the {spec.batch_size} sequences of a batch: some would "
            f"have none; give {spec.batch_size} processes or fewer, or a larger batch_size"
        )
    if spec.shard and spec.processes == 1:
        raise UserError("shard splits the base over several processes: expected processes=2 or more, got 1")


def check_data(data: str | None, tasks: list[str]) -> None:
    """Raise :class:`UserError` for a data folder that no task reads: the user expects it to be used."""
    if data is not None and not set(tasks) & set(HUB_TASKS):
        raise UserError(
            f"data={data} is not used by these tasks; it is a local folder for {' or '.join(HUB_TASKS)}. "
            "Remove it, or give your own file as the task"
        )
