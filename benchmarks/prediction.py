"""Quality of loss predictions: rank correlation of predicted and true added loss over random plans.

    python benchmarks/prediction.py [--plans 60] [--tasks movie_sentences,wiki_articles] [--alone]

Each plan draws a format for every matrix from its own random probabilities, so that plans differ in size too.
It is applied to the model (no adapter, no training), and held-out data give its true added loss on the labels
and the divergence of the predictions. The held-out data are two halves; the rank correlation between the
halves limits that of any prediction. ``--alone`` adds the measured divergence of each matrix alone as a
predictor: the reference for the others, with one forward pass for every matrix and format.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from bitrank.models.load import open_model
from bitrank.models.tokens import tokenised
from bitrank.sensitivity.calibration import calibration, calibration_batches
from bitrank.sensitivity.fit_head import fit_head, logits_and_labels
from bitrank.sensitivity.measure import FORMATS, measure
from bitrank.sensitivity.tables import Tables
from bitrank.spec.configs import CONFIGS
from bitrank.spec.make_spec import make_spec
from bitrank.spec.profiles import find_profile
from bitrank.spec.run_spec import RunSpec
from bitrank_data import CLASSIFICATION, LANGUAGE_MODELLING, TokenisedTask
from bitrank_quant import encode_in_parts, parse_format
from bitrank_quant.sensitivity import FormatErrors, Replay, measure_divergences
from bitrank_trainer import DTYPES, choose_dtype
from harness import cores, machine, machine_line, options, table, write_section
from scipy.stats import spearmanr

# Number of sequences, and offset of the first half in the shuffle.
_HALF = {CLASSIFICATION: (256, 2000), LANGUAGE_MODELLING: (4, 100)}
_TASKS = ("movie_sentences", "wiki_articles")
PREDICTORS: dict[str, Callable[[FormatErrors], float]] = {
    "plain": lambda e: e.plain,
    "input": lambda e: e.input,
    "fisher": lambda e: e.fisher,
    "inputs": lambda e: float(e.tail_R[0]) if len(e.tail_R) else e.fisher,
    "output": lambda e: e.output,
}
# Sequences on which single matrices are measured.
_ALONE = {CLASSIFICATION: 64, LANGUAGE_MODELLING: 4}


@dataclass(frozen=True)
class Truth:
    """True added loss and divergence of plans on each half of the held-out data, (2, plans) in nats."""

    loss_HP: np.ndarray
    divergence_HP: np.ndarray

    @staticmethod
    def ceiling(values_HP: np.ndarray) -> float:
        return float(spearmanr(*values_HP).statistic)


def main() -> int:
    parser = options(__doc__, rounds=1, configs=tuple(CONFIGS)[:1])
    parser.add_argument("--plans", type=int, default=60, help="random plans a task (default: 60)")
    parser.add_argument("--alone", action="store_true", help="measure each matrix alone too: minutes")
    arguments = parser.parse_args()
    here, rows = machine(cores()), []
    for task in arguments.tasks or _TASKS:
        spec = make_spec(find_profile("laptop"), "B-FP", task)
        rows += correlations(spec, arguments.plans, arguments.alone)
    alone = "; *alone* the measured divergence of each matrix alone" if arguments.alone else ""
    text = [
        "## Predicted and true added loss",
        machine_line(here),
        table(
            ("task", "predictor", "ρ with added loss", "ρ with divergence", "plans", "true added loss, nats"),
            rows,
        ),
        "ρ is Spearman's. Summed over matrices: *plain* Σ Δ²; *input* weighted by the inputs' second "
        "moments; *fisher* ½ Σ of the diagonal Kronecker Fisher; *inputs* the same with all correlations of "
        f"the inputs; *output* the output-error score, which plans are made with{alone}. "
        "*one half of the truth* predicts the other half: the highest ρ that can be reached. Formats alone: "
        "no adapter, no training, held-out data.",
    ]
    write_section("prediction", "\n\n".join(text), arguments.results)
    return 0


def correlations(spec: RunSpec, plans: int, alone: bool) -> list[list[str]]:
    """One row per predictor on the model and task of ``spec``, and one for the attainable correlation."""
    tables = measure(spec)
    drawn = [random_plan(tables, seed) for seed in range(plans)]
    truth = find_truth(spec, drawn)
    loss_P, divergence_P = truth.loss_HP.mean(0), truth.divergence_HP.mean(0)
    rest = [str(plans), f"{loss_P.min():.3f} to {loss_P.max():.3f}"]
    rows = []
    predicted = {
        name: {
            matrix: {fmt: predictor(e) for fmt, e in by_format.items()}
            for matrix, by_format in tables.errors.items()
        }
        for name, predictor in PREDICTORS.items()
    }
    if alone:
        predicted["alone"] = measured_alone(spec)
    for name, by_matrix in predicted.items():
        sums = [sum(by_matrix[matrix][fmt] for matrix, fmt in plan.items()) for plan in drawn]
        found = (float(spearmanr(sums, values_P).statistic) for values_P in (loss_P, divergence_P))
        rows.append([f"`{spec.task}`", name, *(f"{rho:.3f}" for rho in found), *rest])
    ceilings = (truth.ceiling(values) for values in (truth.loss_HP, truth.divergence_HP))
    return [*rows, [f"`{spec.task}`", "one half of the truth", *(f"{rho:.3f}" for rho in ceilings), *rest]]


def measured_alone(spec: RunSpec) -> dict[str, dict[str, float]]:
    """The divergence of each matrix alone in each format, on calibration sequences."""
    ready = calibration(spec)
    batches = calibration_batches(tokenised(spec), _ALONE[spec.kind])
    parsed = [parse_format(text) for text in FORMATS]
    found = measure_divergences(Replay(ready.model, batches, ready.forward), ready.matrices, parsed)
    return {
        name: {fmt: divergence for fmt, (_, divergence) in by_format.items()}
        for name, by_format in found.items()
    }


def random_plan(tables: Tables, seed: int) -> dict[str, str]:
    """A random format for every matrix, with format probabilities drawn per plan."""
    random = np.random.default_rng(seed)
    chances = random.dirichlet(np.full(len(FORMATS), 0.7))
    return {name: str(random.choice(FORMATS, p=chances)) for name in tables.errors}


def find_truth(spec: RunSpec, plans: list[dict[str, str]]) -> Truth:
    """Evaluate every plan with decoded matrices in place of the original ones."""
    task = tokenised(spec)
    torch.set_num_threads(cores())
    model = _model(spec, task)
    count, offset = _HALF[spec.kind]
    halves = [
        Replay(
            model,
            calibration_batches(task, count, offset + half * count),
            logits_and_labels(spec.kind, "cpu"),
        )
        for half in (0, 1)
    ]
    kept = {name: model.get_submodule(name).weight.clone() for name in plans[0]}
    found = np.zeros((2, 2, len(plans)))
    for number, plan in enumerate(plans):
        for name, fmt in plan.items():
            _put(model.get_submodule(name), kept[name], fmt)
        for half, replay in enumerate(halves):
            loss, divergence = replay.evaluate_from(None, first=True)
            found[:, half, number] = loss - replay.base, divergence
        print(
            f"{spec.task}: plan {number + 1} of {len(plans)} adds {found[0, :, number].mean():.4f} nats",
            file=sys.stderr,
            flush=True,
        )
    return Truth(*found)


def _model(spec: RunSpec, task: TokenisedTask) -> Any:
    loaded = open_model(spec, len(task.classes), "cpu", DTYPES[choose_dtype("cpu")])
    loaded.fill_rest()
    model = loaded.model.eval().requires_grad_(False)
    if loaded.trained_modules:
        fit_head(model, loaded.trained_modules, spec.kind, calibration_batches(task, 1024, offset=256), "cpu")
    return model


def _put(module: Any, weight_OI: torch.Tensor, text: str) -> None:
    fmt = parse_format(text)
    stored = (
        weight_OI
        if text == "bf16"
        else fmt.decode(encode_in_parts(fmt, weight_OI), tuple(weight_OI.shape), weight_OI.dtype)
    )
    module.weight.data.copy_(stored)


if __name__ == "__main__":
    sys.exit(main())
