"""From the files of a study to its results and verdicts."""

from crisp_attention.studies.analysis.analyse import analyse
from crisp_attention.studies.analysis.results import Analysis, Comparison, Line, Verdict
from crisp_attention.studies.analysis.verdicts import Statement, answer, correction, statements

__all__ = [
    "Analysis",
    "Comparison",
    "Line",
    "Statement",
    "Verdict",
    "analyse",
    "answer",
    "correction",
    "statements",
]
