"""The figures of a report."""

from crisp_attention.studies.report.figures.layers import head_pictures, layer_pictures
from crisp_attention.studies.report.figures.pictures import Picture, curve_pictures, main_pictures

__all__ = ["Picture", "curve_pictures", "head_pictures", "layer_pictures", "main_pictures"]
