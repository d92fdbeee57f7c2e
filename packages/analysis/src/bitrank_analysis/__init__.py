"""The run store as DuckDB views. Statistics, figures and the report build on it. Never torch, never mlflow."""

from bitrank_analysis.errors import AnalysisError
from bitrank_analysis.store import open_store

__version__ = "0.1.0"
__all__ = ["AnalysisError", "open_store"]
