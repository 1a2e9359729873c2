"""What a method is: where a query may look, what it keeps; no tensors of a model."""
