"""What a stage that removes units works with."""

from __future__ import annotations

from collections import defaultdict
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from secateur.calibration.activations import IN_MEMORY, Storage
from secateur.calibration.runner import BlockRunner
from secateur.calibration.statistics import GRADIENTS, INPUTS, Gradients, Needs, Statistics
from secateur.calibration.windows import Windows
from secateur.errors import CalibrationError
from secateur.evaluation.costs import Costs
from secateur.network.network import Layer, Network
from secateur.network.unit_group import UnitGroup
from secateur.processes import ALONE, Processes
from secateur.progress import Progress
from secateur.recipe import Calibration, Prune
from secateur.result import BlockReport, GroupReport
from secateur.scores.unit_score import Usage
from secateur.scores.units import UnitScore, UnitStatistics, unit_score_named
from secateur.timing import timed


@dataclass
class Job:
    """One stage's work on one network.

    Attributes:
        network: The model.
        stage: What to do.
        windows: Calibration windows; None if nothing of it is needed.
        calibration: Precision of the forward passes, and where the text comes from.
        seed: For scores that draw.
        progress: Shows progress.
        first: What the run's first model costs, which shares are shares of.
        team: The processes that share the calibration.
        storage: Where calibration activations may be kept.
        runners: How many there have been; each keeps its activations under a name of its own.
        gradients: By layer, where a score asks for gradients of the next-token loss.
        scarce: Whether fewer calibration tokens than inputs have been noted.
        sensitivity: By layer, where the solver weighs its outputs' errors by that loss; see `output_sensitivity`.
    """

    network: Network
    stage: Prune
    windows: Windows | None
    calibration: Calibration
    seed: int
    progress: Progress
    first: Costs
    team: Processes = ALONE
    storage: Storage = IN_MEMORY
    runners: int = 0
    scarce: bool = False
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    notes: list[str] = field(default_factory=list)
    groups: list[GroupReport] = field(default_factory=list)
    blocks: list[BlockReport] = field(default_factory=list)
    gradients: dict[str, Gradients] = field(default_factory=dict)
    sensitivity: dict[str, Tensor] = field(default_factory=dict)

    @property
    def score(self) -> UnitScore:
        """The score that the stage names; `obs` where the solver goes by its own."""
        return unit_score_named(self.stage.score or "obs", self.stage.combine)

    def timed(self, phase: str) -> AbstractContextManager[None]:
        """Adds the time spent inside to a phase."""
        return timed(self.seconds, phase)

    def runner(self, network: Network | None = None) -> BlockRunner:
        """Returns a runner that stands before the first block.

        Raises:
            CalibrationError: The stage has no calibration windows.
        """
        if self.windows is None:
            raise CalibrationError("this needs calibration windows; give --calibration.")
        name = f"units-{self.runners}-{self.team.rank}"
        self.runners += 1
        given = (self.windows, self.calibration.compute, self.storage, name)
        with self.timed("prelude"):
            return BlockRunner(network or self.network, *given, team=self.team)

    def random(self, group: UnitGroup) -> torch.Generator:
        """Returns a source of random numbers of a group's own."""
        return torch.Generator().manual_seed(self.seed * 1_000_003 + (group.block or 0))

    def statistics(
        self,
        group: UnitGroup,
        inputs: dict[str, Statistics],
        influence: Tensor | None = None,
        usage: Usage | None = None,
        tokens: Tensor | None = None,
    ) -> UnitStatistics:
        """Returns what a score sees of a group."""
        found = []
        for reader in group.readers:
            known = inputs.get(reader.layer.reads)
            gradients = self.gradients.get(reader.layer.name)
            if known is None and gradients is not None:
                known = Statistics.empty(reader.layer.shape[1], Needs.NOTHING, self.network.device)
            found.append(known if known is None or gradients is None else replace(known, gradients=gradients))
        return UnitStatistics(tuple(found), influence, usage, tokens, self.random(group))

    def gather(self, runner: BlockRunner, groups: list[UnitGroup], needs: Needs) -> dict[str, Statistics]:
        """Returns statistics of what the groups' readers read in the block that the runner stands before."""
        layers = [reader.layer for group in groups for reader in group.readers]
        inputs: dict[str, Statistics] = {}
        if needs & INPUTS:
            readers: dict[str, tuple[Layer, Needs]] = {}
            for layer in layers:
                readers.setdefault(layer.reads, (layer, needs))
            with self.timed("gather"):
                inputs = runner.gather(readers, lambda: None)
        if needs & GRADIENTS and self.stage.gradient == "block":
            with self.timed("gradients"):
                self.gradients = runner.gradients(layers, needs, lambda: None)
        return inputs

    def report(self, group: UnitGroup, keep: Tensor, before: float | None = None, error: float | None = None) -> None:
        """Notes what became of a group."""
        few = group.unit in ("layer", "attention", "mlp", "head", "query-head", "expert")
        removed = tuple((~keep).nonzero().flatten().tolist()) if few else None
        self.groups.append(GroupReport(group.name, group.unit, group.count, int(keep.sum()), removed, before, error))
