"""Where the dense attention of a model would lose least: curves, budgets from them, and their picture."""
