"""Prunes a network in memory that isn't a language model: trace, calibrate, cut, repair, measure, save, report."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from secateur.calibration.batches import Batch, Judge, Loss, batches_of, default_loss, loss_of, try_out
from secateur.calibration.statistics import GRADIENTS
from secateur.errors import SaveError, UsageError
from secateur.evaluation.costs import Costs
from secateur.evaluation.examples import Measured, Metric, compare_examples, metric_of
from secateur.evaluation.reloading import model_difference
from secateur.memory import peak_memory
from secateur.network.graph.network import Fixed, GraphNetwork
from secateur.network.graph.saving import difference, rebuild, save_shapes
from secateur.network.graph.tracing import evaluating
from secateur.network.loading import weight_bytes
from secateur.network.modeling import check_plain
from secateur.network.network import Source
from secateur.network.pretrained import plain_kind, pretrained
from secateur.network.saving import check_output, complete_folder, save_model
from secateur.network.unit_group import UnitGroup
from secateur.outcome import versions, write_result
from secateur.progress import Progress
from secateur.recipe import Prune, Recipe, Search
from secateur.report.structure import group_rows, units_table
from secateur.report.terminal import to_text
from secateur.result import Comparison, Result, StageReport
from secateur.scores.units import unit_score_named
from secateur.structure.traced import WEIGHTS_TRAINED, prune_traced
from secateur.structure.traced_job import TracedJob
from secateur.timing import timed

if TYPE_CHECKING:
    from secateur.run_search import Found


@dataclass(frozen=True)
class Units:
    """What can be removed from a network, and what can't.

    Attributes:
        groups: Units that can be cut, in the order of computation.
        fixed: Those that can't, with the reason.
    """

    groups: tuple[UnitGroup, ...]
    fixed: tuple[Fixed, ...]

    def __iter__(self) -> Iterator[UnitGroup]:
        return iter(self.groups)

    def __len__(self) -> int:
        return len(self.groups)

    def table(self) -> str:
        """Returns both as a table of at most 100 columns."""
        return to_text(units_table(group_rows(self.groups), self.fixed))


def units(model: nn.Module, example_inputs: Any, leaf_modules: Sequence[type[nn.Module] | str] = ()) -> Units:
    """Finds out what belongs together in a network, by tracing it.

    Args:
        model: Any network that torch.fx can trace; it isn't changed.
        example_inputs: What it takes: a tensor, or a tuple of arguments.
        leaf_modules: Modules, by kind or name, that aren't looked into.

    Raises:
        UsageError: The network doesn't take the example inputs.
        ModelError: It can't be traced; the message says where.

    Example:
        >>> print(secateur.units(model, torch.randn(1, 3, 32, 32)).table())
    """
    network = graph_network(model, example_inputs, leaf_modules)
    return Units(tuple(network.groups), tuple(network.fixed))


def graph_network(
    model: nn.Module, example_inputs: Any, leaf_modules: Sequence[type[nn.Module] | str] = ()
) -> GraphNetwork:
    """Traces a network; a transformers model stays of its class, so that it can be saved as a checkpoint."""
    return GraphNetwork(model, example_inputs, leaf_modules, keep_class=plain_kind(model) is not None)


@dataclass
class NetworkRun:
    """One call's work on a network.

    Attributes:
        network: The network; it isn't changed.
        stages: What to do, one after the other; several only with transformers models.
        calibration: Batches that statistics come from; empty where there are none.
        evaluation: Batches that quality is measured on; empty where there are none.
        evaluate: Whether anything is measured.
        metric: The user's own.
        loss: What gradient scores differentiate; None takes `default_loss`.
        output: The folder to write.
        overwrite: Whether it may be replaced.
        seed: For scores that draw.
        progress: Shows progress.
        source: The checkpoint that the network was read from; None if it wasn't.
        about, recipe, data: What the result says of the network, the recipe and the calibration data.
        speed: Whether speed is measured.
        found: What a search came to, if there was one.
    """

    network: GraphNetwork
    stages: Sequence[Prune]
    calibration: Sequence[Batch]
    evaluation: Sequence[Batch]
    evaluate: bool
    metric: Metric | None
    loss: Loss | None
    output: Path | None
    overwrite: bool
    seed: int
    progress: Progress
    source: Source | None = None
    about: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    data: str = "the caller's data"
    speed: bool = True
    found: Found | None = None
    start: float = field(default_factory=time.perf_counter)
    seconds: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def carry_out(self) -> Result:
        """Prunes, measures, and writes the output if one is named.

        Raises:
            SecateurError: Something went wrong; the network is as it was, and nothing half-written is left.
        """
        if self.output is not None:
            check_output(self.output, self.overwrite, None if self.source is None else self.source.path)
        with timed(self.seconds, "prune"):
            last, small, keep, reports = self._pruned()
        after = last.costs.of({name: int(stays.sum()) for name, stays in keep.items()})
        peak = peak_memory()
        if self.output is None:
            return self._result(small, reports, self._compare(small, after, None), None, peak)
        with complete_folder(self.output) as folder:
            far = self._save(small, keep, folder)
            result = self._result(small, reports, self._compare(small, after, folder), far, peak)
            write_result(result, folder)
            if self.found is not None:
                self.found.write(folder)
        return result

    def _pruned(self) -> tuple[GraphNetwork, nn.Module, dict[str, Tensor], tuple[StageReport, ...]]:
        """Carries the stages out; returns the network before the last one, and what that one left of it."""
        network, small, reports = self.network, self.network.model, []
        keep: dict[str, Tensor] = {}
        first = network.costs.of()
        for number, stage in enumerate(self.stages):
            if number:
                network = graph_network(small, network.inputs, network.leaf_modules)
            if stage.uniform and plain_kind(network.model) is None:
                raise UsageError("'uniform' is for transformers models; other networks bring their shapes along.")
            given = (network, stage, self.calibration, self.loss or default_loss, self.seed, self.progress, first)
            small, keep, report = prune_traced(TracedJob(*given))
            if plain_kind(small) is not None:
                small = pretrained(small, network.inputs)
            if stage.uniform:
                advice = "Leave --uniform out, take --allocation uniform, or cut other units."
                check_plain(small, network.architecture, "--uniform", advice)
            reports.append(report)
        return network, small, keep, tuple(reports)

    def _save(self, small: nn.Module, keep: Mapping[str, Tensor], folder: Path) -> float:
        """Writes the smaller network, and returns how far what is loaded of it is from the one in memory."""
        with timed(self.seconds, "save"):
            if plain_kind(small) is None:
                save_shapes(self.network, small, keep, folder)
            else:
                save_model(small, folder, None if self.source is None else self.source.path)
        with timed(self.seconds, "reload"):
            if plain_kind(small) is None:
                return self._rebuilt(small, folder)
            trust = self.source is not None and self.source.trust_remote_code
            return model_difference(small, folder, self.network.inputs, trust)

    def _rebuilt(self, small: nn.Module, folder: Path) -> float:
        """Shapes a copy of the dense network by the files, and holds it against the network in memory.

        Raises:
            SaveError: They differ.
        """
        again = rebuild(copy.deepcopy(self.network.model), folder)
        with evaluating(small), evaluating(again):
            far = difference(small, again, self.network.inputs)
        if not far == 0:
            raise SaveError(f"what was saved gives other outputs than the network in memory (by {far:.3g}).")
        return far

    def _compare(self, small: nn.Module, after: Costs, folder: Path | None) -> Comparison | None:
        if not self.evaluate:
            return None
        sizes = [
            sum(tensor.nbytes for tensor in self.network.model.state_dict().values())
            if self.source is None
            else weight_bytes(self.source.path),
            None if folder is None else weight_bytes(folder),
        ]
        networks = [
            Measured("dense", self.network.model, self.network.costs.of(), sizes[0] if folder else None),
            Measured("pruned", small, after, sizes[1]),
        ]
        loss = _measured_loss(self.evaluation, self.loss, self.metric)
        given = (self.evaluation, self.network.inputs, self.progress, self.metric, loss, self.speed)
        with timed(self.seconds, "evaluate"):
            return compare_examples(networks, *given)

    def _result(
        self,
        small: nn.Module,
        reports: tuple[StageReport, ...],
        comparison: Comparison | None,
        far: float | None,
        peak: int,
    ) -> Result:
        examples = sum(batch.size for batch in self.calibration)
        name = self.network.architecture
        about: dict[str, Any] = {"kind": "network", "source": name, "architecture": name}
        if plain_kind(small) is not None:
            del about["kind"]
            reshaped = hasattr(type(small), "plain")
            about |= {"architecture": type(small).__name__, "reshaped": reshaped, "reads": "nothing that was saved"}
        about["dtype"] = str(next(small.parameters()).dtype).removeprefix("torch.")
        return Result(
            output=None if self.output is None else str(self.output),
            about={**about, **self.about},
            recipe=self.recipe,
            calibration={"data": self.data, "examples": examples} if examples else None,
            stages=reports,
            comparison=comparison,
            reload=far,
            seconds={**self.seconds, "total": time.perf_counter() - self.start},
            peak_memory_pruning=peak,
            peak_memory=peak_memory(),
            versions=versions(),
            notes=tuple(self.notes),
            search=None if self.found is None else self.found.told,
            network=small,
        )


def _measured_loss(evaluation: Sequence[Batch], loss: Loss | None, metric: Metric | None) -> Loss | None:
    """Returns the loss that is measured: the user's, or where neither classes nor a metric tell more the usual one."""
    target = evaluation[0].target if evaluation else None
    classes = isinstance(target, Tensor) and not target.is_floating_point()
    return loss or (None if classes or metric is not None else default_loss)


def _judges(evaluation: Sequence[Batch], loss: Loss | None, metric: Metric | None) -> list[Judge]:
    """Returns what is measured of evaluation data that has targets."""
    if not evaluation or evaluation[0].target is None:
        return []
    measured = _measured_loss(evaluation, loss, metric)
    return [
        *([] if measured is None else [partial(loss_of, measured)]),
        *([] if metric is None else [partial(metric_of, metric)]),
    ]


def prune_network(
    model: nn.Module,
    example_inputs: Any,
    *,
    calibration: Any = None,
    evaluate: Any = True,
    metric: Metric | None = None,
    loss: Loss | None = None,
    leaf_modules: Sequence[type[nn.Module] | str] = (),
    output: str | Path | None = None,
    overwrite: bool = False,
    samples: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    options: Mapping[str, Any] | None = None,
    searched: Mapping[str, Any] | None = None,
    resume: bool = False,
) -> Result:
    """Prunes any network that torch.fx can trace; see `secateur.prune` and `secateur.search`, which call this.

    `searched` are the settings of a search for the widths, whose trials `resume` goes on from.
    """
    if example_inputs is None:
        raise UsageError(
            f"a {type(model).__name__} in memory is traced: give example_inputs=, what its forward takes. A language "
            "model is named by its folder or hub id instead."
        )
    network = graph_network(model, example_inputs, leaf_modules)
    arguments = len(network.inputs)
    batches = [] if calibration is None else batches_of(calibration, arguments, samples)
    if calibration is None and samples is not None:
        raise UsageError("samples counts calibration examples: give calibration=, tensors or a DataLoader.")
    notes: list[str] = []
    stage = Prune.build(_with_defaults(dict(options or {}), network, batches, notes))
    measured = [] if isinstance(evaluate, bool) else batches_of(evaluate, arguments)
    if metric is not None and not any(batch.target is not None for batch in measured):
        raise UsageError("a metric holds outputs against targets: give evaluate=, data that has them.")
    by_gradients = bool(unit_score_named(stage.score or "obs", stage.combine).needs & GRADIENTS)
    with evaluating(model):
        try_out(model, batches, "calibration", [partial(loss_of, loss or default_loss)] if by_gradients else ())
        try_out(model, measured, "evaluation", _judges(measured, loss, metric))
    into, found = None if output is None else Path(output).expanduser(), None
    shown = progress or Progress()
    if searched is not None:
        if into is not None:
            check_output(into, overwrite)
        stage, found = search_widths(network, stage, batches, loss, seed, searched, into, shown, resume, overwrite)
    work = NetworkRun(
        network=network,
        stages=(stage,),
        calibration=batches,
        evaluation=measured,
        evaluate=evaluate is not False,
        metric=metric,
        loss=loss,
        output=into,
        overwrite=overwrite,
        seed=seed,
        progress=shown,
        notes=notes,
        found=found,
    )
    result = work.carry_out()
    if found is not None:
        found.forget()
    return result


def search_widths(
    network: GraphNetwork,
    stage: Prune,
    batches: Sequence[Batch],
    loss: Loss | None,
    seed: int,
    searched: Mapping[str, Any],
    output: Path | None,
    progress: Progress,
    resume: bool,
    overwrite: bool,
    recipe: Recipe | None = None,
) -> tuple[Prune, Found]:
    """Searches for how many units each group of a network gives.

    Args:
        network: The network.
        stage: What is pruned; its target is the budget.
        batches: Calibration data, on half of which candidates are judged.
        loss: What they are judged by; None takes `default_loss`.
        seed: Of everything that draws.
        searched: Settings of `Search` by name.
        output: Beside which the study is kept; None keeps it in memory.
        progress: Shows progress.
        resume: Whether trials that the study has are gone on from.
        overwrite: Whether those that an earlier search left may be lost.
        recipe: The run, if it is one of a recipe.

    Returns:
        The stage that a search finds, and what it came to.

    Raises:
        UsageError: A setting is for language models, or the target can't be met.
        SearchError: The study can't be used, or no candidate could be judged.
    """
    from secateur.automl.networks import NetworkSearch  # noqa: PLC0415
    from secateur.run_search import find_widths, tidied  # noqa: PLC0415 (Optuna's import takes a second)

    for name in ("halves", "losses", "level_solver", "levels"):
        if name in searched:
            raise UsageError(f"'{name}' is for language models; a network's candidates are cut and repaired each time.")
    work = NetworkSearch(network, stage, batches, loss, seed)
    few = max(2, work.examples // 4)
    settings = Search.build({"tokens": sorted({few, max(few, work.examples)}), **searched})
    with tidied(output):
        return find_widths(work, settings, seed, output, progress, resume, overwrite, recipe)


def _with_defaults(
    options: dict[str, Any], network: GraphNetwork, batches: Sequence[Batch], notes: list[str]
) -> dict[str, Any]:
    """Fills in what depends on the network and the data: which units there are, and what can be known of them."""
    given = {name: value for name, value in options.items() if value is not None}
    if given.get("unit") == "weight" or ("pattern" in given and "unit" not in given):
        raise UsageError(WEIGHTS_TRAINED)
    if "unit" not in given:
        kinds = sorted({group.unit for group in network.groups})
        if not kinds:
            reasons = "".join(f" {one.name}: {one.reason}." for one in network.fixed[:3])
            raise UsageError(f"{network.architecture} has no units that can be cut.{reasons}")
        given["unit"] = ",".join(kinds)
    if not batches:
        if "score" not in given and "solver" not in given:
            given["score"] = "l1"
        if "repair" not in given:
            given["repair"] = False
            notes.append(
                "Without calibration data units go by the size of their weights, and what reads them isn't fitted "
                "anew: calibration= takes tensors or a DataLoader."
            )
    elif all(batch.target is None for batch in batches):
        score = str(given.get("score", ""))
        if score and ":" not in score and unit_score_named(score).needs & GRADIENTS:
            notes.append(f"The calibration data has no targets, so '{score}' goes by the size of the outputs.")
    return given
