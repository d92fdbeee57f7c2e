"""A finished run, read from its folder or from the store's artifacts: spec, plans and adapter."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bitrank_quant import has_layers, imitated_format, parse_format, weight_matrices

from bitrank.errors import UserError
from bitrank.models.load import Loaded
from bitrank.process.run_folder import ADAPTER, DIGESTS, damage
from bitrank.spec.inputs import check_inputs
from bitrank.spec.make_spec import make_spec
from bitrank.spec.profiles import find_profile
from bitrank.spec.run_spec import RunSpec, read_spec

_BASE = "bf16"


@dataclass(frozen=True)
class FinishedRun:
    """Spec, adapter folder and plans of a run.

    ``precision`` is None for an adapter without a run: its base is in 16 bits.
    """

    spec: RunSpec
    adapter: Path
    precision: dict[str, str] | None
    ranks: dict[str, int]

    @property
    def trained_codes(self) -> bool:
        """Whether training changed the codes of the base, and left no adapter."""
        return has_layers(self.adapter)

    def formats(self, loaded: Loaded) -> dict[str, str]:
        """The format of every matrix of the base."""
        if self.precision is not None:
            return self.precision
        return {
            m.name: _BASE
            for m in weight_matrices(loaded.model)
            if m.tied_to is None and m.name not in loaded.trained_modules
        }


def find_run(source: Path, task: str | None = None, model: str | None = None) -> FinishedRun:
    """Find the run of ``source``, which is the folder of a run or of an adapter.

    An adapter without its run needs ``task`` and ``model``. Raises :class:`UserError` if ``source`` has no
    adapter, its run is not finished or has stand-ins as formats, or one of them is missing.
    """
    if not source.is_dir():
        raise UserError(
            f"there is no folder {source}: expected a spec id of the store (bitrank list; --store names "
            "another), the folder of a run (work/SPEC_ID in the store) or that of an adapter"
        )
    adapter = source if (source / "adapter_config.json").is_file() else source / "adapter"
    if not (adapter / "adapter_config.json").is_file():
        if (source / "spec.json").is_file():
            raise UserError(
                f"the run in {source} is not finished: it has no adapter yet; repeat the command that "
                "started it, which continues it"
            )
        raise UserError(
            f"{source} contains no adapter: expected the folder of a run with spec.json, plan.json and "
            "adapter/, or of an adapter"
        )
    home = adapter.parent
    if (home / "spec.json").is_file() and (home / "plan.json").is_file():
        if task or model:
            raise UserError(f"{home} is a run, which defines its task and model; omit --task and --model")
        return _run_of(home, adapter)
    if not (task and model):
        raise UserError(
            f"{adapter} is an adapter without its run: give --model (its 16-bit base) and --task "
            "(to evaluate it)"
        )
    return FinishedRun(make_spec(find_profile("laptop"), "B-FP", task, {"model": model}), adapter, None, {})


def check_has_adapter(run: FinishedRun) -> None:
    """Raise :class:`UserError` for a run that trained codes or scales of its formats and has no adapter."""
    from bitrank_adapters import read_scales

    if run.trained_codes or read_scales(run.adapter):
        raise UserError(
            f"{run.spec.config} trained the quantized matrices themselves and has no adapter to export; give "
            "--to quantized or --to merged, without --lora"
        )


def _run_of(home: Path, adapter: Path) -> FinishedRun:
    """Read the run in ``home``; its files must match their digests. Old runs without digests are accepted."""
    problem = damage(home, _is_read) if (home / DIGESTS).is_file() else None
    if problem:
        remedy = "copy it again from the store's artifacts, or repeat the run with --force"
        raise UserError(f"{home}: {problem}; {remedy}")
    try:
        plan = json.loads((home / "plan.json").read_text(encoding="utf-8"))
        precision, ranks = dict(plan["precision"]), dict(plan["ranks"])
        spec = read_spec(home / "spec.json")
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{home}: plan.json or spec.json is damaged ({error}); copy the run again") from error
    _check_formats(home, precision)
    check_inputs(spec)
    return FinishedRun(spec, adapter, precision, ranks)


def _check_formats(home: Path, precision: Mapping[str, str]) -> None:
    """Raise :class:`UserError` for a run in stand-ins: it has the loss of a format that it does not store."""
    for text in precision.values():
        if (imitated := imitated_format(parse_format(text))) is not None:
            raise UserError(
                f"{home} was trained with {text}, noise of the size of {imitated}'s errors, which is for "
                f"studies and stores 16 bits: no runtime can have it; export a run in {imitated}"
            )


def _is_read(name: str) -> bool:
    return name in {"spec.json", "plan.json"} or name.startswith(f"{ADAPTER}/")
