"""Measuring attention, and a profile of where sparsity is safe."""
