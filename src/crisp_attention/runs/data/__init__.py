"""Any classification data set, ready for fine-tuning."""

from crisp_attention.errors import DataError
from crisp_attention.runs.data.task import Task, load_task

__all__ = ["DataError", "Task", "load_task"]
