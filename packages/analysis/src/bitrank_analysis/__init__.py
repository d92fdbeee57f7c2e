"""Read the run store through DuckDB views and compare runs with paired statistics.

Figures, report and paper build on both. The package imports neither torch nor mlflow.
"""

from bitrank_analysis.budget_curves import BudgetCurve, read_curves
from bitrank_analysis.errors import AnalysisError
from bitrank_analysis.make_bundle import write_bundle
from bitrank_analysis.metrics import METRICS, Metric
from bitrank_analysis.planning_costs import Planning, read_planning
from bitrank_analysis.query import ReadOnlyStore, Rows, open_read_only, query
from bitrank_analysis.readable import without_predictions
from bitrank_analysis.store import open_store
from bitrank_analysis.study import Study, load_study

__version__ = "0.1.0"
__all__ = [
    "METRICS",
    "AnalysisError",
    "BudgetCurve",
    "Metric",
    "Planning",
    "ReadOnlyStore",
    "Rows",
    "Study",
    "load_study",
    "open_read_only",
    "open_store",
    "query",
    "read_curves",
    "read_planning",
    "without_predictions",
    "write_bundle",
]
