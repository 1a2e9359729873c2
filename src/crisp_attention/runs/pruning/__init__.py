"""Pruning while fine-tuning: as a treatment of runs and studies, and of a model in memory. Imports nothing."""

LEARNING_RATE = 1e-3  # what is pruned recovers at a larger one than that of fine-tuning
