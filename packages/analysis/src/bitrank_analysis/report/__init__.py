"""Write the report on a study from the store alone."""

from bitrank_analysis.report.build import UI_URL, collect, write, write_report
from bitrank_analysis.report.findings import Finding, findings
from bitrank_analysis.report.model import Report
from bitrank_analysis.report.plan_page import PlanSection, plan_page
from bitrank_analysis.report.planners import planners_report

__all__ = [
    "UI_URL",
    "Finding",
    "PlanSection",
    "Report",
    "collect",
    "findings",
    "plan_page",
    "planners_report",
    "write",
    "write_report",
]
