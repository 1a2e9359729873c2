"""Where sparsity costs a model least: curves of kept mass, budgets from them, and their figure."""
