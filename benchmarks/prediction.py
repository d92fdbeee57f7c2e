"""Is a predicted loss worth something? Rank correlation between predicted and true added loss over random precision plans.

    python benchmarks/prediction.py [--plans 60] [--tasks movie_sentences,wiki_articles]

Each plan draws a format for every matrix; how many bits it leans to is drawn first, so that plans differ in size too. It is put into the
model as it is (no adapter, no training), and the loss on data that was not measured on says what it truly added.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from bitrank.configs import CONFIGS
from bitrank.heads import fit_head, loss_sum
from bitrank.measuring import FORMATS, Tables, calibration_batches, measure
from bitrank.models import load_tokenizer, open_model
from bitrank.planning.costs import measured_noise, pulled
from bitrank.profiles import find_profile
from bitrank.specs import RunSpec, make_spec
from bitrank_data import Batch, open_task, tokenise
from bitrank_quant import parse_format
from bitrank_quant.reference import encode_in_parts
from bitrank_trainer import PLAIN_OBJECTIVES
from harness import cores, machine, machine_words, options, table, write_section
from scipy.stats import spearmanr

_HELD_OUT = {"classification": (128, 2000), "language-modelling": (4, 100)}  # sequences, and how many lie between them and those measured
_TASKS = ("movie_sentences", "wiki_articles")
Predictor = Callable[[Any], float]


def main() -> int:
    parser = options(__doc__, rounds=1, configs=tuple(CONFIGS)[:1])
    parser.add_argument("--plans", type=int, default=60, help="random plans a task (default: 60)")
    arguments = parser.parse_args()
    here, rows = machine(cores()), []
    for task in arguments.tasks or _TASKS:
        rows += correlations(make_spec(find_profile("laptop"), "B-FP", task), arguments.plans)
    text = [
        "## Predicted and true added loss",
        machine_words(here),
        table(("task", "predictor", "Spearman's ρ", "plans", "true added loss, nats"), rows),
        "*plain*: Σ Δ²; *input*: weighted by the inputs' second moments; *fisher*: ½ Σ of the diagonal Kronecker Fisher; *measured*: the\n"
        "true added loss of each matrix alone, summed; *believed*: fisher pulled towards measured as far as that stands above its noise,\n"
        "which is what plans are made with. Formats alone: no adapter, no training, data that was not measured on.",
    ]
    write_section("prediction", "\n\n".join(text), arguments.results)
    return 0


def correlations(spec: RunSpec, plans: int) -> list[list[str]]:
    """A row for each predictor on the model and task of ``spec``."""
    tables = measure(spec)
    drawn = [random_plan(tables, seed) for seed in range(plans)]
    truth = np.array(true_losses(spec, drawn))
    span = f"{truth.min():.3f} to {truth.max():.3f}"
    rows = []
    for name, predictor in predictors(tables).items():
        predicted = [sum(predictor(tables.errors[matrix][fmt]) for matrix, fmt in plan.items()) for plan in drawn]
        rows.append([f"`{spec.task}`", name, f"{spearmanr(predicted, truth).statistic:.3f}", str(plans), span])
    return rows


def predictors(tables: Tables) -> dict[str, Predictor]:
    """The ways to predict what one matrix in one format adds."""
    noise = measured_noise(tables)
    return {
        "plain": lambda e: e.plain,
        "input": lambda e: e.input,
        "fisher": lambda e: e.fisher,
        "measured": lambda e: e.fisher if e.added is None else e.added,
        "believed": lambda e: pulled(e.added, e.fisher, noise),
    }


def random_plan(tables: Tables, seed: int) -> dict[str, str]:
    """A format for every matrix; the probabilities of formats are drawn for the plan."""
    random = np.random.default_rng(seed)
    chances = random.dirichlet(np.full(len(FORMATS), 0.7))
    return {name: str(random.choice(FORMATS, p=chances)) for name in tables.errors}


def true_losses(spec: RunSpec, plans: list[dict[str, str]]) -> list[float]:
    """The loss that each plan adds on held-out data, in nats: every matrix decoded from its format in place of the original."""
    task = tokenise(open_task(spec.task, spec.data), load_tokenizer(spec.model), spec.max_length)
    count, offset = _HELD_OUT[spec.kind]
    batches = calibration_batches(task, count, offset)
    torch.set_num_threads(cores())
    loaded = open_model(spec, len(task.classes), "cpu", torch.bfloat16)
    loaded.fill_rest()
    model = loaded.model.eval().requires_grad_(False)
    if loaded.fresh:
        fit_head(model, loaded.fresh, spec.kind, calibration_batches(task, 1024, offset=256), "cpu")
    kept = {name: model.get_submodule(name).weight.clone() for name in plans[0]}
    base = mean_loss(spec, model, batches)
    losses = []
    for number, plan in enumerate(plans, 1):
        for name, fmt in plan.items():
            _put(model.get_submodule(name), kept[name], fmt)
        losses.append(mean_loss(spec, model, batches) - base)
        print(f"{spec.task}: plan {number} of {len(plans)} adds {losses[-1]:.4f} nats", file=sys.stderr, flush=True)
    return losses


def mean_loss(spec: RunSpec, model: Any, batches: list[Batch]) -> float:
    """Nats a judged unit."""
    assert spec.kind in PLAIN_OBJECTIVES
    loss = loss_sum(spec.kind, "cpu")
    with torch.no_grad():
        parts = [loss(model, batch) for batch in batches]
    return float(sum(part for part, _ in parts)) / sum(count for _, count in parts)


def _put(module: Any, weight_OI: torch.Tensor, text: str) -> None:
    fmt = parse_format(text)
    stored = weight_OI if text == "bf16" else fmt.decode(encode_in_parts(fmt, weight_OI), tuple(weight_OI.shape), weight_OI.dtype)
    module.weight.data.copy_(stored)


if __name__ == "__main__":
    sys.exit(main())
