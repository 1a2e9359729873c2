"""Kernels: how a (layout, rule) pair is computed. `reference` is the definition."""
