"""Bit and rank allocation under one byte budget: the joint problem and its solvers."""

from collections.abc import Callable

from bitrank_planner.ablations import bits_only, rank_only
from bitrank_planner.errors import Infeasible, PlanError
from bitrank_planner.exact import GAP, Effort, exact
from bitrank_planner.greedy import greedy
from bitrank_planner.journal import Journal
from bitrank_planner.problem import Item, Option, Plan, Problem
from bitrank_planner.registry import Entry
from bitrank_planner.search import SEARCHES, Found, anneal, bayes, nsga2, random_plan, random_search

__version__ = "0.1.0"

SOLVERS: dict[str, Callable[..., Plan | Found]] = {"exact": exact, "greedy": greedy, **SEARCHES}
"""Every solver by name. ``exact`` and ``greedy`` take the problem alone; \
the searches evaluate plans as well."""

__all__ = [
    "GAP",
    "SEARCHES",
    "SOLVERS",
    "Effort",
    "Entry",
    "Found",
    "Infeasible",
    "Item",
    "Journal",
    "Option",
    "Plan",
    "PlanError",
    "Problem",
    "anneal",
    "bayes",
    "bits_only",
    "exact",
    "greedy",
    "nsga2",
    "random_plan",
    "random_search",
    "rank_only",
]
