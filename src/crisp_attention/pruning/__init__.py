"""Pruning weights for the classes that a user needs (CRISP, arXiv 2311.14272), which is not about attention."""
