"""Predicting which pairs entmax attention will connect, before its scores are computed."""

from crisp_attention.methods.layouts.sparsefinder.layout import Sparsefinder

__all__ = ["Sparsefinder"]
