"""Evaluation: quality, size and speed, measured side by side."""
