"""Allocation: how a budget becomes an amount per layer, and an amount a mask."""

from secateur.allocation.allocator import Allocator
from secateur.allocation.alpha import Alpha
from secateur.allocation.error import MarginalError
from secateur.allocation.owl import Owl

ALLOCATORS: dict[str, type[Allocator]] = {kind.name: kind for kind in (Owl, Alpha, MarginalError)}
ALLOCATIONS = ("uniform", "global", *ALLOCATORS)
