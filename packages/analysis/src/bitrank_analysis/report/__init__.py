"""One page about a study, made from the store alone."""

from bitrank_analysis.report.build import UI_URL, Report, collect, write, write_report

__all__ = ["UI_URL", "Report", "collect", "write", "write_report"]
