"""Exports: a checkpoint for other runtimes."""
