"""Plan a model that does not fit this machine, from its ``config.json`` alone.

Sizes are exact; sensitivities come from the prior in :mod:`bitrank.planning.prior`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from bitrank_planner import Effort, Item, Option, Plan, Problem
from bitrank_trainer import DTYPES

from bitrank.errors import UserError
from bitrank.forecast.model_shapes import model_shapes
from bitrank.forecast.repeated_blocks import Choice, step_bytes
from bitrank.planning.budget import NOTHING_TRAINS, Sizes, parse_budget
from bitrank.planning.costs import Choices
from bitrank.planning.kept_ranks import ADAPTER_BYTES
from bitrank.planning.make_plan import PlanRequest, check_planner, match_pins
from bitrank.planning.planners import PLANNERS, plan_by
from bitrank.planning.prior import prior_costs
from bitrank.planning.restrictions import restricted, ties_for
from bitrank.process.compute import Compute
from bitrank.spec.learning import learning_cost
from bitrank.spec.run_spec import RunSpec

# Suffixes of files with weights. Those that are not loaded must not make a model look like a bare config.
_WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx"}


@dataclass(frozen=True)
class Training:
    """Bytes of training with one batch, by part, without libraries."""

    weights: int
    adapters: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def peak(self) -> int:
        return self.weights + self.adapters + self.gradients + self.optimizer + self.activations


def is_outline(model: str) -> bool:
    """Return whether ``model`` names a ``config.json``, or a folder with one and no weights of any kind."""
    path = Path(model)
    if path.is_file():
        return path.suffix == ".json"
    # An index without its shards has several suffixes, .safetensors.index.json, and is a damaged model.
    has_weights = any(_WEIGHTS & set(file.suffixes) for file in path.glob("*"))
    return (path / "config.json").is_file() and not has_weights


def sizes_from_config(spec: RunSpec) -> Sizes:
    """Return the sizes in the model whose config is at ``spec.model``."""
    dtype = "bf16" if spec.dtype == "auto" else spec.dtype
    shapes = model_shapes(spec.model, spec.kind, dtype=DTYPES[dtype])
    return Sizes(shapes, spec.quant_backend, "cpu", dtype, spec.quantizer != RunSpec.quantizer)


def outlined_problem(spec: RunSpec, budget: str, choices: Choices) -> tuple[Problem, Sizes]:
    """Return the planning problem of the model whose config is at ``spec.model``, and its sizes.

    Costs come from :mod:`bitrank.planning.prior`.
    """
    sizes = sizes_from_config(spec)
    outline = sizes.outline
    nats = prior_costs(outline.matrices, choices.formats, choices.offered_ranks, outline.heads)
    items = []
    for m in outline.matrices:
        ranks = choices.ranks_of(m)
        options = [
            Option(
                fmt,
                rank,
                sizes.of_matrix(m.name, fmt, rank),
                nats[m.name][fmt, rank if choices.repairs else 0],
                rank * sum(m.shape),
            )
            for fmt in choices.formats
            for rank in ranks
        ]
        items.append(Item(m.name, tuple(options), m.role, m.layer, m.shape))
    return Problem(tuple(items), parse_budget(budget, sizes), sizes.fixed), sizes


def plan_from_config(spec: RunSpec, request: PlanRequest) -> tuple[Plan, Problem, Sizes]:
    """Return the plan of ``request`` for the model whose config is at ``spec.model``, its problem and sizes.

    Raises :class:`UserError` for a planner that needs measurements, and
    :class:`~bitrank_planner.PlanError` if no plan fits the budget.
    """
    able = [name for name, planner in PLANNERS.items() if planner.from_prior]
    if request.planner not in able:
        raise UserError(
            f"a plan from a config.json needs one of the planners {', '.join(able)}; got {request.planner!r}"
        )
    check_planner(request.planner, ties_for(request.runtime, request.ties))
    if learning_cost(request.learning).trains:
        raise UserError(
            f"learning={request.learning} trains the model, and a config.json has no weights; leave it out"
        )
    problem, sizes = outlined_problem(spec, request.budget, request.choices)
    problem = replace(problem, max_trainable=request.max_trainable)
    problem = restricted(problem, request.runtime, request.ties)
    problem = problem.pinned(match_pins(request.pins, [item.name for item in problem.items]))
    plan = plan_by(
        request.planner,
        problem,
        None,  # type: ignore[arg-type]  # these planners read the problem alone
        Effort(request.seconds),
        request.draw,
    )
    return plan, problem, sizes


def training_memory(spec: RunSpec, plan: Plan) -> Training:
    """Return the bytes of training ``plan`` with the batch of ``spec``, from a ``meta`` dry run.

    Raises :class:`UserError` if the plan has no adapter, because nothing would be trained.
    """
    if not plan.ranks:
        raise UserError(NOTHING_TRAINS)
    in_memory = 4 * plan.trainable  # fp32
    return Training(
        plan.nbytes - ADAPTER_BYTES * plan.trainable,
        in_memory,
        in_memory,
        2 * in_memory,
        step_bytes(spec, Choice(plan.precision, plan.ranks), Compute("cpu", "bf16", threads=None)),
    )
