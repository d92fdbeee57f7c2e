"""Arguments of the Python interface, checked before anything is loaded, measured or changed."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sized
from numbers import Integral, Real
from typing import Any

import torch

from bitrank.errors import UserError, shortened
from bitrank.spec.config import Config
from bitrank.spec.plan_file import check_plan_data

_TEXTS = ("planner", "init", "quantizer", "learning", "runtime", "profile")
_COUNTS = ("max_rank", "max_trainable")


def check_plan_arguments(budget: object, options: Mapping[str, Any]) -> None:
    """Raise :class:`UserError` for a type that :func:`bitrank.api.plan` does not take."""
    _expect(isinstance(budget, str), "budget", "text such as '120kB', '3.5bits' or '=B-Q4'", budget)
    for name in _TEXTS:
        _expect(isinstance(options[name], str), name, "text", options[name])
    for name in _COUNTS:
        _expect(options[name] is None or _is_whole(options[name]), name, "a whole number", options[name])
    _check_several("formats", options["formats"], str, "texts, such as ('int4-g64', 'int8')")
    _check_several("ranks", options["ranks"], Integral, "whole numbers, such as (0, 8, 16)")
    _check_several("ties", options["ties"], str, "texts, such as ('qkv', 'gate-up')")
    _check_pins(options["pins"])
    settings = options["settings"]
    is_spec = isinstance(settings, Mapping) and all(isinstance(key, str) for key in settings)
    _expect(settings is None or is_spec, "settings", "fields by name, such as {'max_length': 256}", settings)


def check_apply_arguments(compute_dtype: object, inputs: object) -> list[Mapping[str, Any]]:
    """The batches of ``inputs``, read once: a loader that shuffles would give others at each pass.

    Raises :class:`UserError` for a type that :func:`bitrank.api.apply` does not take.
    """
    is_dtype = compute_dtype is None or isinstance(compute_dtype, torch.dtype)
    _expect(is_dtype, "compute_dtype", "a dtype such as torch.bfloat16", compute_dtype)
    batches: list[Any] | None = None
    # A DataLoader has a length and no `in`, so it is no Collection.
    if isinstance(inputs, Iterable) and isinstance(inputs, Sized) and not isinstance(inputs, Mapping | str):
        batches = list(inputs)
    _expect(
        batches is not None and all(isinstance(batch, Mapping) for batch in batches),
        "inputs",
        "a list or DataLoader of batches, such as [{'input_ids': ids}]",
        inputs,
    )
    return batches or []


def check_attach_arguments(scale: object, heads: object, total_steps: object, seed: object) -> None:
    """Raise :class:`UserError` for a type that :func:`bitrank.api.attach` does not take.

    ``scale`` is not an :class:`~bitrank_adapters.AdapterScale`.
    """
    is_factor = scale is None or (isinstance(scale, Real) and not isinstance(scale, bool))
    _expect(is_factor, "scale", "a number such as 2.0, or an AdapterScale", scale)
    _check_several("heads", heads, str, "names of modules, such as ['classifier']")
    _expect(total_steps is None or _is_whole(total_steps), "total_steps", "a whole number", total_steps)
    _expect(_is_whole(seed), "seed", "a whole number", seed)


def given_plan(plan: object, optional: str) -> dict[str, Any]:
    """The data of a caller's ``plan``, which may lack the object ``optional``. Raises :class:`UserError`."""
    is_plan = isinstance(plan, Mapping)
    _expect(is_plan, "plan", "a plan that bitrank.plan made or bitrank.load_plan(path) read", plan)
    assert isinstance(plan, Mapping)
    return check_plan_data({optional: {}, **plan}, "the plan")


def check_attachable(data: Mapping[str, Any], config: Config, init: str, total_steps: int | None) -> None:
    """Raise :class:`UserError` for adapters that only a run can start, train or save, or without a length."""
    if init != "default":
        raise UserError(
            f"the adapters of this plan start with init={init!r}, which is computed while a run "
            "quantizes its base; train it with `bitrank run --plan`, plan with init='default', or give "
            "init='default' to start the adapters at zero"
        )
    if config.rank.needs_hook and not data["adaptive"]:
        name = data["rank_rule"].get("name") or data["rank_rule_of"].get("config")
        raise UserError(
            f"the rank rule {name} changes or converts adapters while a run trains and saves "
            "them; train it with `bitrank run --plan`, or give a rule with constant ranks"
        )
    if config.rank.triplets and total_steps is None:
        raise UserError(
            "this plan is adaptive (AdaLoRA): give total_steps, the optimizer steps of the training"
        )


def _check_pins(pins: object) -> None:
    expected = "a pair by part of a name, such as {'down_proj': ('int8', None)}"
    is_mapping = isinstance(pins, Mapping) and all(isinstance(part, str) for part in pins)
    _expect(pins is None or is_mapping, "pins", expected, pins)
    assert pins is None or isinstance(pins, Mapping)
    for part, pin in (pins or {}).items():
        _expect(_is_pin(pin), f"pins[{part!r}]", "a pair (format or None, rank or None)", pin)


def _is_pin(pin: object) -> bool:
    if not isinstance(pin, tuple | list) or len(pin) != 2:
        return False
    return (pin[0] is None or isinstance(pin[0], str)) and (pin[1] is None or _is_whole(pin[1]))


def _check_several(name: str, values: object, kind: type, expected: str) -> None:
    if values is not None:
        is_several = isinstance(values, Collection) and not isinstance(values, str | bytes | Mapping)
        right = is_several and all(_is_a(value, kind) for value in values)  # type: ignore[attr-defined]
        _expect(right, name, expected, values)


def _is_a(value: object, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _is_whole(value: object) -> bool:
    return _is_a(value, Integral)


def _expect(right: bool, name: str, expected: str, got: object) -> None:
    if not right:
        raise UserError(f"expected {name} to be {expected}, got {shortened(got)}")
