"""The task that a data set sets: its inputs, what is to be predicted, and the metrics."""

from crisp_attention.runs.task.metrics import Metric
from crisp_attention.runs.task.target import Classification, Regression, Target, Task

__all__ = ["Classification", "Metric", "Regression", "Target", "Task"]
