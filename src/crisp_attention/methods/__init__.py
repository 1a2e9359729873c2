"""Methods: where a query may look and what it keeps; independent of any model."""
