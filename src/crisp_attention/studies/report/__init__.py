"""`crisp report`: what a study says, as a page, tables, figures and a summary."""

from crisp_attention.studies.report.command import run_report
from crisp_attention.studies.report.terminal import show
from crisp_attention.studies.report.writing import write_report

__all__ = ["run_report", "show", "write_report"]
