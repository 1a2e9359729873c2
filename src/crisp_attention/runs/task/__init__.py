"""What a data set asks of a model: its inputs, what is to be predicted, and by which metrics it is judged."""

from crisp_attention.runs.task.metrics import Metric
from crisp_attention.runs.task.target import Classification, Regression, Target
from crisp_attention.runs.task.task import Task

__all__ = ["Classification", "Metric", "Regression", "Target", "Task"]
