"""Plugging sparse attention into other people's models."""
