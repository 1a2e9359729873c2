"""Sparse attention in models of other libraries."""
