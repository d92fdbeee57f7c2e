"""The paper's numbers, tables, figures and claims, made from the store alone."""

from bitrank_analysis.paper.build import write_paper

__all__ = ["write_paper"]
