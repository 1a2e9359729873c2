"""Any data set: where it is read from, which columns are the inputs and the label, what its labels are."""

from crisp_attention.runs.data.load import load_task

__all__ = ["load_task"]
