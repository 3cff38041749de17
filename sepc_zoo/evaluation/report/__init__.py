"""The report of an evaluation: one HTML page that needs nothing but itself."""

from sepc_zoo.evaluation.report.page import write_report

__all__ = ["write_report"]
