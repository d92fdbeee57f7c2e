"""Quality of plans without training: perplexity of the quantized model, at equal bytes.

    python benchmarks/allocation.py [--tasks wiki_articles] [--quantizer rtn] [--blocks] [--whole '=B-Q4']

*Blocks*: formats of the block matrices alone, at the bytes of uniform int4-g64 and int5-g64 on them, by one
exact solver from each score of the tables; embeddings and heads stay in 16 bits. *Whole*: plans of formats
and ranks for all matrices at a budget of ``bitrank plan``, with adapters that start from zero. Texts are
those of the test split; each plan is compared with the first one text by text.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from bitrank.planning.costs import Choices
from bitrank.planning.make_plan import PlanRequest, make_plan
from bitrank.planning.plan_divergence import PlanEvaluator
from bitrank.process.compute import objective_of
from bitrank.run.data import RunData, load_data
from bitrank.sensitivity.measure import FORMATS, measure
from bitrank.sensitivity.tables import Tables
from bitrank.spec.make_spec import make_spec
from bitrank.spec.profiles import find_profile
from bitrank.spec.run_spec import RunSpec
from bitrank_planner import Item, Option, Plan, Problem, exact
from bitrank_quant import WeightMatrix, parse_format
from bitrank_quant.sensitivity import FormatErrors
from bitrank_trainer import choose_device
from harness import cores, machine, machine_line, options, table, write_section

UNIFORM = ("int4-g64", "int5-g64")  # formats whose bytes the block plans have
SCORES: dict[str, Callable[[FormatErrors], float]] = {
    "fisher": lambda e: e.fisher,
    "inputs": lambda e: float(e.tail_R[0]) if len(e.tail_R) else e.fisher,
    "output": lambda e: e.output,
}
PLANNERS = ("hand-made", "uniform", "bits-only", "exact")


@dataclass(frozen=True)
class Quality:
    """Loss in nats and number of tokens of each text of the test split."""

    documents: list[str]
    loss_D: np.ndarray
    tokens_D: np.ndarray

    @property
    def nats_D(self) -> np.ndarray:
        """Nats per token of each text."""
        nats_D: np.ndarray = self.loss_D / self.tokens_D
        return nats_D

    @property
    def mean(self) -> float:
        """Nats per token of all texts together."""
        return float(self.loss_D.sum() / self.tokens_D.sum())

    def row(self, first: Quality) -> list[str]:
        difference_D = self.nats_D - first.nats_D
        error = 1.96 * difference_D.std(ddof=1) / len(difference_D) ** 0.5
        return [f"{np.exp(self.mean):.2f}", f"{difference_D.mean():+.4f} ± {error:.4f}"]


def main() -> int:
    parser = options(__doc__, rounds=1, configs=(), tasks=("wiki_articles",))
    parser.add_argument("--quantizer", default="rtn", help="quantizer of all plans (default: rtn)")
    parser.add_argument("--blocks", action="store_true", help="the block matrices alone")
    parser.add_argument("--whole", metavar="BUDGET", help="whole plans at this budget, such as =B-Q4")
    parser.add_argument("--planners", default=",".join(PLANNERS), help="of --whole, comma-separated")
    arguments = parser.parse_args()
    here, rows = machine(cores()), []
    for task in arguments.tasks:
        spec = make_spec(find_profile("laptop"), "B-FP", task, {"quantizer": arguments.quantizer})
        if arguments.blocks or not arguments.whole:
            rows += block_rows(spec)
        if arguments.whole:
            rows += whole_rows(spec, arguments.whole, arguments.planners.split(","))
    text = [
        "## Plans without training",
        machine_line(here),
        table(("task", "plan", "perplexity", "nats from the first of its kind, by text", "bytes"), rows),
        f"Quantizer {arguments.quantizer}. Intervals of 95 % over the texts of the test split.",
    ]
    write_section("allocation", "\n\n".join(text), arguments.results)
    return 0


def block_rows(spec: RunSpec) -> list[list[str]]:
    """One row per score and size, after the uniform plan of that size."""
    tables = measure(spec)
    data, evaluator = load_data(spec), PlanEvaluator(spec, tables, repairs=False)
    blocks = [m for m in tables.matrices if m.adaptable]
    rest = {m.name: "bf16" for m in tables.matrices if not m.adaptable and m.tied_to is None}
    rows = []
    for fmt in UNIFORM:
        budget = sum(parse_format(fmt).nbytes(m.shape) for m in blocks)
        plans = {f"blocks, uniform {fmt}": block_plan(blocks, tables, budget, (fmt,), SCORES["fisher"])}
        for name, score in SCORES.items():
            plans[f"blocks, {name}, bytes of {fmt}"] = block_plan(blocks, tables, budget, FORMATS, score)
        rows += evaluated(spec, data, evaluator, plans, rest)
    return rows


def block_plan(
    blocks: Sequence[WeightMatrix],
    tables: Tables,
    budget: int,
    formats: Sequence[str],
    score: Callable[[FormatErrors], float],
) -> Plan:
    """The exact plan of the block matrices' formats, without adapters."""
    items = []
    for m in blocks:
        errors = tables.errors[m.name]
        choices = [Option(f, 0, parse_format(f).nbytes(m.shape), score(errors[f])) for f in formats]
        items.append(Item(m.name, tuple(choices), m.role, m.layer, m.shape))
    return exact(Problem(tuple(items), budget))


def whole_rows(spec: RunSpec, budget: str, planners: Sequence[str]) -> list[list[str]]:
    """One row per planner at ``budget``."""
    plans, tables = {}, None
    for name in planners:
        request = PlanRequest(budget, name, Choices(repairs=False))
        result = make_plan(spec, request, lambda text: print(text, file=sys.stderr, flush=True))
        plans[f"{name} at {budget}"], tables = result.plan, result.tables
    assert tables is not None
    return evaluated(spec, load_data(spec), PlanEvaluator(spec, tables, repairs=False), plans, {})


def evaluated(
    spec: RunSpec, data: RunData, evaluator: PlanEvaluator, plans: dict[str, Plan], rest: dict[str, str]
) -> list[list[str]]:
    rows, first = [], None
    for name, plan in plans.items():
        with evaluator.applied({**plan.precision, **rest}, plan.ranks):
            found = quality(spec, data, evaluator)
        first = first or found
        rows.append([f"`{spec.task}`", name, *found.row(first), f"{plan.nbytes:,}"])
        print(rows[-1], file=sys.stderr, flush=True)
    return rows


def quality(spec: RunSpec, data: RunData, evaluator: PlanEvaluator) -> Quality:
    """The model of ``evaluator`` on the test split."""
    device = choose_device(spec.device)
    rows = data.evaluate(evaluator.model, data.test, objective_of(spec), device).rows
    texts: dict[str, list[float]] = {}
    for row in rows:
        total = texts.setdefault(data.test.ids[row["index"]], [0.0, 0.0])
        total[0] += row["loss"]
        total[1] += row["tokens"]
    sums_D2 = np.array(list(texts.values()))
    return Quality(list(texts), sums_D2[:, 0], sums_D2[:, 1])


if __name__ == "__main__":
    sys.exit(main())
