"""Pruning while fine-tuning: as a treatment of runs and studies, and of a model in memory."""
