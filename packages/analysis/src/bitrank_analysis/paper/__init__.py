"""Numbers, tables, figures and claims of the paper, generated from the store alone."""

from bitrank_analysis.paper.build import write_paper

__all__ = ["write_paper"]
