"""What a run reports: plain records that go to secateur.json, the terminal and the HTML page alike."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from secateur.solvers.chain import Step


@dataclass(frozen=True)
class LayerReport:
    """What happened to one layer.

    Attributes:
        name: The layer's name in the model, e.g. `model.layers.0.self_attn.q_proj`.
        rows, columns: Outputs and inputs of its weight.
        zeros_before, zeros: Weights that are exactly zero, before and after.
        dead_rows, dead_columns: Outputs and inputs that have no weight left.
        error_masked: Relative reconstruction error ||(W - W')X||² / ||WX||² of the mask alone; None where no
            Gram matrix was gathered.
        error: The same after the solvers.
        damping: Damping that made the Gram matrix positive definite, relative to its mean diagonal.
        threshold: The threshold that scores were held against, where one was asked for.
        seconds: Time spent on scoring and solving.
        steps: What each solver of the chain did.
        rank: Of the factors that stand for it; None for a layer that is whole.
    """

    name: str
    rows: int
    columns: int
    zeros_before: int
    zeros: int
    dead_rows: int
    dead_columns: int
    error_masked: float | None = None
    error: float | None = None
    damping: float | None = None
    threshold: float | None = None
    seconds: float = 0.0
    steps: tuple[Step, ...] = ()
    rank: int | None = None

    @property
    def weights(self) -> int:
        """Number of weights in the layer."""
        return self.rows * self.columns

    @property
    def sparsity(self) -> float:
        """Share of the weights that are zero."""
        return self.zeros / self.weights


@dataclass(frozen=True)
class BlockReport:
    """What reconstruction did to one block.

    Attributes:
        name: The block's name.
        error_before, error: Squared error of the pruned block's output against what it is in the dense model, relative
            to what the block adds to its input, before and after, on windows that weren't trained on.
        passes: Passes over the activations that were made.
    """

    name: str
    error_before: float
    error: float
    passes: int


@dataclass(frozen=True)
class GroupReport:
    """What became of one group of units.

    Attributes:
        name: Where it is: `model.layers.0/neuron`, or `model/layer`.
        unit: The kind.
        before, left: Units before and after.
        removed: The units that went, by their index before; None where there are too many to list: of neurons,
            channels, filters and tokens, and of all kinds in traced networks.
        error_before, error: Squared error of what its reader gives, relative to the size of what it should give, with
            the units merely gone and after the repair; None where it wasn't measured.
    """

    name: str
    unit: str
    before: int
    left: int
    removed: tuple[int, ...] | None = None
    error_before: float | None = None
    error: float | None = None


@dataclass(frozen=True)
class TrainingReport:
    """What a stage that trains did.

    Attributes:
        data: Where its text came from.
        trained, judged: Windows or rows that were trained on, and others that judged.
        steps: Steps of the optimizer.
        best: The step whose state was kept; 0 is the beginning.
        before, after: Mean loss on what judged, in nats, at the beginning and of the state that was kept.
        log: Dicts of `step` and some of `epoch`, `loss`, `eval_loss`, `learning_rate` and `grad_norm`.
    """

    data: str
    trained: int
    judged: int
    steps: int
    best: int
    before: float
    after: float
    log: tuple[dict[str, float], ...] = ()


@dataclass(frozen=True)
class StageReport:
    """What one stage of a recipe did.

    Attributes:
        stage: The stage's settings, as written in the recipe with its defaults.
        layers: One report per pruned layer, in forward order.
        seconds: Wall time by phase: `prelude`, `plan`, `gather`, `gradients`, `solve`, `reconstruct`, `propagate`.
        notes: Things that the user should know, in words.
        blocks: One report per reconstructed block.
        groups: One report per group of units, where units were removed.
        budget: What the run's first model cost, and what this stage's model cost before and after it (see
            `secateur.evaluation.costs.Costs`); None for single weights.
        training: What training did; None where nothing was trained.
    """

    stage: dict[str, Any]
    layers: tuple[LayerReport, ...]
    seconds: dict[str, float]
    notes: tuple[str, ...] = ()
    blocks: tuple[BlockReport, ...] = ()
    groups: tuple[GroupReport, ...] = ()
    budget: dict[str, Any] | None = None
    training: TrainingReport | None = None

    @property
    def weights(self) -> int:
        """Number of weights in the layers that were pruned."""
        return sum(layer.weights for layer in self.layers)

    @property
    def zeros(self) -> int:
        """Number of zeros in the layers that were pruned."""
        return sum(layer.zeros for layer in self.layers)

    @property
    def sparsity(self) -> float:
        """Share of zeros in the layers that were pruned."""
        return self.zeros / self.weights if self.weights else 0.0


@dataclass(frozen=True)
class Metrics:
    """What was measured of one checkpoint. What doesn't apply, or wasn't asked for, is None.

    Attributes:
        name: What was measured: a path or a model id.
        parameters: Number of parameters, ties counted once.
        weights, zeros: Linear weights inside the blocks, and how many of them are exactly zero.
        bytes_on_disk: Size of the weight files.
        text: The text that quality was measured on.
        windows, tokens: Windows evaluated, and the tokens predicted in them.
        perplexity: exp of the mean negative log-likelihood per predicted token.
        bits_per_byte: The same in bits per byte of text; comparable across vocabularies.
        kl: Mean KL divergence from the dense model's next-token distribution to this one's, nats per token.
        top1_agreement: Share of positions at which both models' most likely token is the same.
        cosine: Mean cosine similarity of output vectors to the dense model's (encoders, XLNet).
        prefill, decode: Tokens per second, the median of repeats taken in turns with the dense model.
        prefill_one, decode_one: The same on one thread; measured where units were removed.
        speed_spread: By how much repeats of the same speed differ: the largest interquartile range relative to the
            median.
        macs: Multiply-accumulates per token of a window; see secateur.evaluation.costs.
        accuracy: Share of examples whose class is right (networks that aren't language models; the next ones, too).
        f1: Of two classes the F1 of the second, of more the mean over all of them (tables of text and label).
        matthews: Matthews' correlation of the classes with what was told (the same).
        wer: Word error rate against what is said, in small letters and without punctuation (models that hear).
        metric: What the user's own metric says.
        loss: Mean loss.
        examples: Examples that quality was measured on.
        macs_each: Multiply-accumulates per example.
        batch_one, batch_many: Examples per second at batches of 1 and of 64, the median of repeats in turns.
        sample: A text that the model wrote from `prompt`.
        mask: What the mask file beside the checkpoint says, and whether the weights hold it; None without one.
        pattern: The N:M pattern that each single group of weights holds, by that mask; None without.
        sparsity_by_layer: Share of zeros per layer inside the blocks.
        tasks: What it reaches in zero-shot tasks, by task and metric.
    """

    name: str
    parameters: int
    weights: int
    zeros: int
    bytes_on_disk: int | None = None
    text: str | None = None
    windows: int | None = None
    tokens: int | None = None
    perplexity: float | None = None
    bits_per_byte: float | None = None
    kl: float | None = None
    top1_agreement: float | None = None
    cosine: float | None = None
    prefill: float | None = None
    decode: float | None = None
    prefill_one: float | None = None
    decode_one: float | None = None
    speed_spread: float | None = None
    macs: int | None = None
    accuracy: float | None = None
    f1: float | None = None
    matthews: float | None = None
    wer: float | None = None
    metric: float | None = None
    loss: float | None = None
    examples: int | None = None
    macs_each: int | None = None
    batch_one: float | None = None
    batch_many: float | None = None
    prompt: str | None = None
    sample: str | None = None
    mask: str | None = None
    pattern: str | None = None
    sparsity_by_layer: dict[str, float] = field(default_factory=dict)
    tasks: dict[str, float] = field(default_factory=dict)

    @property
    def sparsity(self) -> float:
        """Share of the blocks' linear weights that are zero."""
        return self.zeros / self.weights if self.weights else 0.0


@dataclass(frozen=True)
class Comparison:
    """One dense checkpoint and others measured beside it, in one run.

    Attributes:
        dense: The reference.
        others: What is compared with it.
        notes: What is not faster or smaller, and why.
    """

    dense: Metrics
    others: tuple[Metrics, ...]
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data for JSON."""
        return asdict(self)

    def table(self) -> str:
        """Returns the figures side by side as text, at most 100 columns wide."""
        from secateur.report.terminal import comparison_table, to_text  # noqa: PLC0415 (report knows results)

        return to_text(comparison_table(self))


@dataclass(frozen=True)
class Result:
    """The outcome of a run, also written to `secateur.json` in the output folder.

    Attributes:
        output: The folder that was written; None when the recipe names none.
        about: Where the model came from, its architecture, family and dtype.
        recipe: The recipe as it was carried out, with every default written out.
        calibration: Source, windows, length, tokens, held-out windows; None if nothing was calibrated.
        stages: One report per stage.
        comparison: Dense against pruned; None with `--no-evaluate`.
        reload: The largest difference of logits between the model in memory and the saved one, loaded by
            plain transformers in a fresh process; None where nothing was saved.
        seconds: Wall time by phase: load, calibrate, prune, save, evaluate, total.
        peak_memory_pruning: The process's peak resident memory in bytes up to the end of pruning (loading and
            calibration included), as the operating system counts it.
        peak_memory: The same up to the end of the run, the evaluation's second model included.
        versions: Of secateur and of the libraries that the numbers depend on.
        notes: Things that the user should know, in words.
        search: What a search came to, as plain data; None where nothing was searched for.
        network: The pruned network in memory (of a network that isn't a language model, the model itself); not written
            to files.
    """

    output: str | None
    about: dict[str, Any]
    recipe: dict[str, Any]
    calibration: dict[str, Any] | None
    stages: tuple[StageReport, ...]
    comparison: Comparison | None
    reload: float | None
    seconds: dict[str, float]
    peak_memory_pruning: int
    peak_memory: int
    versions: dict[str, str]
    notes: tuple[str, ...] = ()
    search: dict[str, Any] | None = None
    network: Any = field(default=None, repr=False, compare=False)

    @property
    def model(self) -> Any:
        """The pruned model."""
        return getattr(self.network, "model", self.network)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data for JSON, without the network."""
        data = asdict(replace(self, network=None))
        del data["network"]
        return data

    def table(self) -> str:
        """Returns the before / after table as text, at most 100 columns wide."""
        from secateur.report.terminal import result_table, to_text  # noqa: PLC0415 (report knows results)

        return to_text(result_table(self))


@dataclass(frozen=True)
class Exported:
    """What an export came to.

    Attributes:
        output: The folder that was written.
        to: The format.
        files: The model's files in it, with their bytes.
        difference: The largest difference of the outputs from torch's, relative to the largest output; None where
            nothing could run it here.
        verified_by: What ran it: `onnxruntime`, `openvino` ...; None where nothing could.
        seconds: Wall time by phase.
        notes: What the user should know.
    """

    output: str
    to: str
    files: dict[str, int]
    difference: float | None
    verified_by: str | None
    seconds: dict[str, float]
    notes: tuple[str, ...] = ()
