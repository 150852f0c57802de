"""The search for the best strategy: what may be chosen, what it is worth, and who chooses."""
