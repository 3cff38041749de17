"""The report of an evaluation: one HTML page without any other file."""

from sepc_zoo.evaluation.report.page import write_report

__all__ = ["write_report"]
