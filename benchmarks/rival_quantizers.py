"""Quantizers of other projects beside ours: GPTQModel and auto-round on SmolLM2, without an allocation.

    python benchmarks/rival_quantizers.py [--only GPTQModel] [--widths 3,4] [--environments FOLDER]

Each runs in an environment of its own with our calibration windows, in groups of 64 with a scale and a zero
point, and gives back its decoded block matrices; embedding and head stay in 16 bits. The model is evaluated
as in `benchmarks/quantizers.py`, and rows go to the same page. Their zero points have the bits of the codes,
where our minimum has 16: 4.3 instead of 4.5 bits per weight with 4-bit codes, 3.3 instead of 3.5 with 3.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from bitrank.models.load import open_model
from bitrank.process.compute import Compute, objective_for
from bitrank.run.data import load_data
from bitrank.sensitivity.input_moments import StoredMoments, gather
from bitrank.spec.make_spec import make_spec
from bitrank.spec.profiles import find_profile
from bitrank.spec.run_spec import RunSpec
from bitrank_quant import block_matrices, parse_format
from bitrank_trainer import evaluate
from quantizers import PAGE, TASK, Measured, output_error, write_row
from rival_environments import Rival, rival_request, run_rival
from rival_scripts.exchange import GROUP, WEIGHTS
from safetensors import safe_open

RIVALS = {
    "GPTQModel": Rival("gptqmodel", "gptqmodel_weights.py", ("torch==2.14.1", "GPTQModel==7.7.0")),
    "auto-round": Rival("auto-round", "autoround_weights.py", ("torch==2.13.0", "auto-round==0.16.1")),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default=",".join(RIVALS))
    parser.add_argument("--widths", default="3,4")
    parser.add_argument("--environments", type=Path, help="folder of their environments (default: temporary)")
    arguments = parser.parse_args()
    spec, failed = make_spec(find_profile("laptop"), "B-FP", TASK, {"dtype": "fp32"}), 0
    request = rival_request(spec, ())
    for name in arguments.only.split(","):
        for width in map(int, arguments.widths.split(",")):
            with tempfile.TemporaryDirectory() as folder:
                at_width = replace(request, width=width)
                found = run_rival(RIVALS[name], at_width, Path(folder), arguments.environments)
                failed += "error" in found
                if "error" in found:
                    print(f"{name}: {found['error']}", flush=True)
                    continue
                measured = evaluated(spec, Path(folder) / WEIGHTS, width, found["cpu_seconds"])
            versions = ", ".join(f"{package} {version}" for package, version in found["versions"].items())
            write_row(f"int{width}-g{GROUP}", name, measured, f"{versions}; {found['settings']}")
            print(f"{name}, {width} bits: {measured.cells()}, in {PAGE.name}", flush=True)
    return 1 if failed else 0


def evaluated(spec: RunSpec, weights: Path, width: int, seconds: float) -> Measured:
    """The model of ``spec`` with the decoded matrices in the file ``weights``."""
    compute, data = Compute.of(spec), load_data(spec)
    loaded = open_model(spec, data.task.classes, compute.device, compute.dtype)
    loaded.fill_rest()
    model = loaded.model.eval().requires_grad_(False)
    moments, fmt, errors = StoredMoments(gather(spec)), parse_format(f"int{width}-g{GROUP}"), []
    with safe_open(weights, framework="pt") as file:
        for matrix in block_matrices(model):
            weight = model.get_submodule(matrix.name).weight
            assert isinstance(weight, torch.Tensor)
            input_II = moments.of(matrix.name, matrix.shape[1]).second
            rounded_OI = fmt.decode(fmt.encode(weight), matrix.shape, torch.float32)
            theirs_OI = file.get_tensor(matrix.name)
            ratio = output_error(weight - theirs_OI, input_II) / output_error(weight - rounded_OI, input_II)
            errors.append(ratio)
            weight.data.copy_(theirs_OI)
    objective = objective_for(spec.kind, fused=False)
    metrics = evaluate(model, data.batches_of(data.test), objective, compute.device).metrics
    return Measured(math.exp(metrics["loss"]), errors, seconds, math.nan)


if __name__ == "__main__":
    sys.exit(main())
