"""What a candidate is worth: its quality, less what its size weighs, within limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

OUTSIDE = 1e6  # how far below all others a candidate is that exceeds a limit


@dataclass(frozen=True)
class Worth:
    """What a candidate came to.

    Attributes:
        reward: What the strategy goes by, more being better.
        quality: Without weights; None where it exceeds a limit and so wasn't judged.
        shares: What is left of the dense model by each measure.
        others: Of the measures that make a front with the reward, in their order; less is better.
    """

    reward: float
    quality: float | None = None
    shares: Mapping[str, float] = field(default_factory=dict)
    others: tuple[float, ...] = ()


class Reward:
    """Rewards candidates: quality minus the weighted shares, or far below all that keep the limits (Deb 2000)."""

    def __init__(
        self, quality: str, weigh: Mapping[str, float], limit: Mapping[str, float], front: Sequence[str] = ()
    ) -> None:
        """
        Args:
            quality: What quality is, in words.
            weigh, limit: By measure, see `secateur.recipe.Search`.
            front: The measures of a front.
        """
        self.quality, self.weights, self.limits, self.front = quality, weigh, limit, tuple(front)
        self.measures = frozenset({*weigh, *limit, *front})

    def excess(self, shares: Mapping[str, float]) -> float:
        """Returns by how much a candidate exceeds its limits, in shares of the dense model."""
        return sum(max(0.0, shares[measure] - limit) for measure, limit in self.limits.items())

    def beyond(self, shares: Mapping[str, float]) -> Worth:
        """Returns what a candidate is worth that exceeds its limits: less than any that keeps them, by every goal."""
        far = OUTSIDE + self.excess(shares)
        return Worth(-far, None, shares, (far,) * len(self.front))

    def of(self, quality: float, shares: Mapping[str, float]) -> Worth:
        """Returns what a candidate is worth that keeps its limits."""
        weighed = sum(weight * shares[measure] for measure, weight in self.weights.items())
        return Worth(quality - weighed, quality, shares, tuple(shares[measure] for measure in self.front))

    @property
    def words(self) -> str:
        """The formula, for people."""
        less = "".join(f", less {weight:g} times the share of {measure}" for measure, weight in self.weights.items())
        most = " and ".join(f"{measure} at most {limit:.0%}" for measure, limit in self.limits.items())
        front = f"; a front with {' and '.join(self.front)}" if self.front else ""
        return f"{self.quality}{less}{'; ' + most if most else ''}{front}"
