"""The prune stage for units that go for good: choose, repair, cut."""

from secateur.structure.stage import prune_units

__all__ = ["prune_units"]
