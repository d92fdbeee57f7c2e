"""Heuristic rules for ranks and formats, and their application to a byte budget."""

from bitrank_planner.heuristics.budget import at_budget
from bitrank_planner.heuristics.precisions import PRECISION_HEURISTICS, THREE_BITS
from bitrank_planner.heuristics.ranks import RANK_HEURISTICS

__all__ = ["PRECISION_HEURISTICS", "RANK_HEURISTICS", "THREE_BITS", "at_budget"]
