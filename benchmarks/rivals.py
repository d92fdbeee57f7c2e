"""Allocations of bits at equal bytes: ours beside auto-round's AutoScheme, NVIDIA ModelOpt and mlx-lm.

    python benchmarks/rivals.py assign [--only ModelOpt,mlx-lm] [--environments FOLDER]
    python benchmarks/rivals.py evaluate [--quantizers rtn,search] [--budgets 4.5,4.0,3.5]
    python benchmarks/rivals.py report

`assign` installs each rival in an environment of its own, gives it the 16-bit model and our calibration
windows, and keeps its choice of bits for each block matrix of SmolLM2 in docs/results/rivals. Only the
allocation differs: `evaluate` stores every choice in our formats by our quantizer, and measures the test
articles of `wiki_articles` without any training. It needs no rival to be installed, and a repeated command
measures what the journal lacks. `report` writes docs/results/rivals.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from allocation import quality
from bitrank.planning.plan_divergence import PlanEvaluator
from bitrank.run.data import load_data
from bitrank.sensitivity.measure import measure, measured_formats
from bitrank.sensitivity.tables import Tables
from bitrank.spec.make_spec import make_spec
from bitrank.spec.profiles import find_profile
from bitrank.spec.run_spec import RunSpec
from rival_arms import (
    BUDGETS,
    FORMATS,
    OURS,
    UNIFORM,
    UNQUANTIZED,
    Assignment,
    average_bits,
    blocks_of,
    budget_bytes,
    format_of,
    hand_made,
)
from rival_environments import Rival, rival_request, run_rival
from rival_report import FOLDER, ORIGINAL, Evaluation, append, read_evaluations, write_report

TASK = "wiki_articles"
RIVALS = {
    "AutoScheme": Rival("auto-round", "autoscheme_bits.py", ("torch==2.13.0", "auto-round==0.16.1")),
    "ModelOpt": Rival("modelopt", "modelopt_bits.py", ("torch==2.13.0", "nvidia-modelopt[hf]==0.47.0")),
    "mlx-lm": Rival("mlx", "mlx_bits.py", ("mlx[cpu]==0.32.4", "mlx-lm==0.32.2")),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("action", choices=("assign", "evaluate", "report"))
    parser.add_argument("--only", default=",".join(RIVALS), help="rivals to install and run")
    parser.add_argument("--windows", type=int, help="calibration windows of each rival (default: ours)")
    parser.add_argument("--environments", type=Path, help="folder of their environments (default: temporary)")
    parser.add_argument("--quantizers", default="rtn,search")
    parser.add_argument("--budgets", default=",".join(str(bits) for bits in BUDGETS))
    arguments = parser.parse_args()
    if arguments.action == "assign":
        return assign(arguments.only.split(","), arguments.environments, arguments.windows)
    if arguments.action == "evaluate":
        for bits in arguments.budgets.split(","):
            for quantizer in arguments.quantizers.split(","):
                evaluate_all(float(bits), quantizer)
    write_report(read_evaluations(), failures())
    return 0


def spec_of(quantizer: str) -> RunSpec:
    """The run whose model, calibration data and test articles are used."""
    return make_spec(find_profile("laptop"), "B-FP", TASK, {"quantizer": quantizer})


def assign(names: list[str], environments: Path | None, windows: int | None) -> int:
    """Run the rivals called ``names`` and keep their assignments, or their errors. 1 if one failed."""
    request, failed = rival_request(spec_of("rtn"), BUDGETS, windows), 0
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            found = run_rival(RIVALS[name], request, Path(folder), environments)
        if "error" not in found:
            found["assignments"] = {
                budget: {matrix: format_of(bits) for matrix, bits in chosen.items()}
                for budget, chosen in found["assignments"].items()
            }
        failed += "error" in found
        keep(name, found)
        print(f"{name}: {found.get('error') or found['settings']}", flush=True)
    return 1 if failed else 0


def keep(name: str, found: dict[str, Any]) -> None:
    """Write the assignments of ``name`` into the folder of results."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")


def kept(name: str) -> dict[str, Any]:
    """The assignments of ``name``; empty if it has not run."""
    place = FOLDER / f"{name}.json"
    return dict(json.loads(place.read_text())) if place.exists() else {}


def failures() -> dict[str, str]:
    """Why a rival has no assignments, by its name."""
    reasons = {name: kept(name).get("error", "") if kept(name) else "not run" for name in RIVALS}
    return {name: reason for name, reason in reasons.items() if reason}


def evaluate_all(bits: float, quantizer: str) -> None:
    """Measure what the journal lacks of the arms at ``bits`` by ``quantizer``."""
    found = read_evaluations()
    done = {one.arm for one in found if one.arm == ORIGINAL or (one.quantizer, one.bits) == (quantizer, bits)}
    spec = spec_of(quantizer)
    tables = measure(spec, formats=measured_formats(FORMATS, quantizer))
    data, evaluator = load_data(spec), PlanEvaluator(spec, tables, repairs=False)
    rest = {m.name: UNQUANTIZED for m in tables.matrices if not m.adaptable and m.tied_to is None}
    for arm, assignment in arms(spec, tables, bits):
        if arm in done:
            continue
        with evaluator.applied({**assignment, **rest}, {}):
            measured = quality(spec, data, evaluator)
        average = average_bits(blocks_of(tables), assignment)
        losses, tokens = measured.loss_D.tolist(), measured.tokens_D.tolist()
        row = Evaluation(arm, quantizer, bits, average, measured.documents, losses, tokens)
        append(row)
        print(f"{quantizer} {bits} {arm}: {row.perplexity:.2f} at {average:.3f} bits", flush=True)


def arms(spec: RunSpec, tables: Tables, bits: float) -> Iterator[tuple[str, Assignment]]:
    """Every arm at ``bits`` by name; ours are computed once and kept."""
    blocks = blocks_of(tables)
    budget = budget_bytes(blocks, bits)
    yield ORIGINAL, {m.name: UNQUANTIZED for m in blocks}
    yield "uniform", {m.name: UNIFORM[bits] for m in blocks}
    yield "hand-made", hand_made(blocks, budget)
    for rival in RIVALS:
        if chosen := kept(rival).get("assignments"):
            yield rival, chosen[str(bits)]
    for arm, choose in OURS.items():
        name = f"{arm.replace(', ', '-')}-{spec.quantizer}"
        found = kept(name) or {"assignments": {}}
        if str(bits) not in found["assignments"]:
            found["assignments"][str(bits)] = choose(spec, tables, budget)
            keep(name, found)
        yield arm, found["assignments"][str(bits)]


if __name__ == "__main__":
    sys.exit(main())
