"""Search on real evaluations: four solvers with one signature and a fixed number of distinct plans."""

from bitrank_planner.registry import Entry
from bitrank_planner.search.anneal import anneal
from bitrank_planner.search.bayes import bayes
from bitrank_planner.search.evaluation_budget import Found
from bitrank_planner.search.nsga2 import nsga2
from bitrank_planner.search.random_search import random_plan, random_search

SEARCHES: dict[str, Entry[Found]] = {
    "random": Entry(random_search),
    "anneal": Entry(anneal),
    "nsga2": Entry(nsga2),
    "bayes": Entry(bayes),
}

__all__ = ["SEARCHES", "Found", "anneal", "bayes", "nsga2", "random_plan", "random_search"]
