"""Arms of studies that are more than one planner with its usual settings.

A study's arm is an entry of :data:`STUDY_ARMS`, a planner, or a config. A config is brought to the budget
(:mod:`~bitrank.planning.equal_bytes`), and a planned config is planned for it.
"""

from __future__ import annotations

from dataclasses import dataclass

from bitrank_planner import SEARCHES

from bitrank.planning.planners import is_measured
from bitrank.spec.configs import CONFIGS
from bitrank.spec.inits import INITS


@dataclass(frozen=True)
class StudyArm:
    """How an arm gets its plan, and how it trains.

    Of the plans of several ``planners`` the one with the least loss after its short training is taken, and
    the seconds of all count. Adapters start by ``init``. ``adaptive``: AdaLoRA redistributes ranks around the
    rank of a uniform plan and removes pruned ranks; as many ranks are left, and the bytes differ by the
    shapes of their matrices. ``rank_rule``, a name in
    :data:`~bitrank.spec.named_rank_rules.RANK_RULES`, assigns ranks by the rank of a uniform plan. ``draw``
    is the number of a random plan. ``longer_by`` names an arm whose planning seconds are spent on more
    training steps. ``measures``: the plan needs the sensitivity measurement. That of arms on the uniform plan
    does not: its pair is chosen by predicted loss, but a person finds the largest one that fits without a
    measurement. ``control``: the arm controls for a cause in a study of planners, and is no system to compare
    with.
    ``source`` names the publication of a system, and is empty for arms of this project.
    """

    about: str
    planners: tuple[str, ...]
    init: str = "lq-lora"
    adaptive: bool = False
    draw: int = 0
    rank_rule: str | None = None
    longer_by: str | None = None
    measures: bool = True
    control: bool = False
    source: str = ""

    @property
    def needs_measurement(self) -> bool:
        """Whether the seconds of the measurement count: the plan or the start of the adapters reads it.

        An arm that trains longer spends those of the other arm on training.
        """
        return self.longer_by is None and (self.measures or INITS[self.init].weighted)


_UNIFORM = ("uniform",)
NULL_ARMS: dict[str, StudyArm] = {
    f"random-plan-{draw:02d}": StudyArm(
        f"random plan {draw}", ("random-plan",), draw=draw, measures=False, control=True
    )
    for draw in range(20)
}
STUDY_ARMS: dict[str, StudyArm] = {
    "uniform": StudyArm("one format and one rank for all matrices", _UNIFORM, measures=False),
    "hand-made": StudyArm("the hand-made rule", ("hand-made",), measures=False),
    "adalora": StudyArm(
        "AdaLoRA on the uniform plan",
        _UNIFORM,
        "default",
        adaptive=True,
        measures=False,
        source="AdaLoRA; Zhang et al. 2023",
    ),
    "adalora-loftq": StudyArm(
        "AdaLoRA with LoftQ's initialization on the uniform plan",
        _UNIFORM,
        "loftq",
        adaptive=True,
        measures=False,
        source="AdaLoRA and LoftQ; Zhang et al. 2023, Li et al. 2024",
    ),
    "best-search": StudyArm("the best plan of all searches", tuple(SEARCHES), control=True),
    "equal-compute": StudyArm(
        "the uniform plan, trained longer by the planning time of the exact plan",
        _UNIFORM,
        longer_by="exact",
        measures=False,
        control=True,
    ),
    "train-then-reduce": StudyArm(
        "the uniform plan's formats, trained at four times its rank and reduced to its bytes at the end",
        _UNIFORM,
        "default",
        rank_rule="train-then-reduce",
        measures=False,
        source="PARA; arXiv:2604.27796, 2026",
    ),
    **NULL_ARMS,
    "qr-adaptor": StudyArm(
        "the better plan of a genetic search and of Bayesian optimization on short trainings, as QR-Adaptor",
        ("nsga2", "bayes"),
        source="QR-Adaptor; Zhou et al. 2025",
    ),
}
# Arms of the study of systems: every config, and every study arm that is a system of its own.
SYSTEM_ARMS = (*CONFIGS, *(name for name, arm in STUDY_ARMS.items() if not arm.control))


def find_study_arm(name: str) -> StudyArm:
    """Return the entry called ``name``, or the arm of the planner with that name."""
    return STUDY_ARMS.get(name) or StudyArm(f"the plan of {name}", (name,), measures=is_measured(name))
