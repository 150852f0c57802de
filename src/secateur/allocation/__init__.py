"""Allocation: how a budget becomes an amount per layer, and an amount a mask."""

ALLOCATIONS = ("uniform", "global")
