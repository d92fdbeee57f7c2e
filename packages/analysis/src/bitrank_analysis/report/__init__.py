"""One page about a study, made from the store alone."""

from bitrank_analysis.report.build import Report, collect, write_report

__all__ = ["Report", "collect", "write_report"]
