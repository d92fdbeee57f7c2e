"""Paired statistics of a study.

The exported functions take a study. The modules below them take arrays and can be used alone.
"""

from bitrank_analysis.statistics.arms import arms
from bitrank_analysis.statistics.compare import compare
from bitrank_analysis.statistics.factorial import factorial
from bitrank_analysis.statistics.paired import PAIRED_TESTS, PairedTest
from bitrank_analysis.statistics.pareto import pareto
from bitrank_analysis.statistics.seeds import ONE_SEED

__all__ = ["ONE_SEED", "PAIRED_TESTS", "PairedTest", "arms", "compare", "factorial", "pareto"]
