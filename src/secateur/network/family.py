"""How an architecture family is described: data that says where its blocks and weights are.

A language model is described, not traced. One `Family` serves every model of its kind: it names the list of
blocks and, inside a block, every linear weight together with what its rows (outputs) and columns (inputs)
mean. From that follow which layers share an input (and so a Gram matrix), and which slices belong to one
neuron, head or channel. An encoder-decoder has two such lists, each a `Stack`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from types import MappingProxyType
from typing import Literal


class Layout(Enum):
    """The order of a stored weight's axes. Axes beyond two are flattened into the second one."""

    OUT_IN = "out, in"  # torch.nn.Linear; XLNet's o: (hidden, heads, head_dim)
    IN_OUT = "in, out"  # transformers' Conv1D (GPT-2); XLNet's q, k, v, r: (hidden, heads, head_dim)


@dataclass(frozen=True)
class Projection:
    """One linear weight of a block.

    Attributes:
        path: Where it is inside the block, e.g. `self_attn.q_proj` (a module that has a `weight`), or
            `rel_attn.q` (a bare parameter).
        rows: What its outputs are, in order: `q`, `k`, `v`, `gate`, `neuron`, `residual` ... A fused weight
            lists several, e.g. `("q", "k", "v")`.
        columns: What its inputs are. Projections of a block with the same columns read the same tensor.
            `head` are the attention heads' outputs, `neuron` the MLP's hidden features. A decoder's second
            attention reads `cross attention input` (q) and `encoder output` (k, v); its heads are `cross head`.
        layout: The stored axes' order.
        per_head: A fused weight lists its parts head by head (GPT-NeoX) instead of part by part.
        experts: The stored weight has an axis of experts before the others, and each expert is a layer of its own,
            with an input of its own: the tokens that are routed to it.
        where: Only blocks that have this path have the projection (a dense MLP in some blocks, experts in others);
            None for all blocks.
    """

    path: str
    rows: tuple[str, ...]
    columns: str
    layout: Layout = Layout.OUT_IN
    per_head: bool = False
    experts: bool = False
    where: str | None = None


@dataclass(frozen=True)
class Stack:
    """A list of blocks of one kind, each of which takes the hidden states that the one before it gave.

    Attributes:
        name: `encoder` or `decoder`.
        blocks: Path of the list of blocks, from the base model (the model without its head).
        projections: A block's linear weights, in the order in which the block computes them.
        config: The config's field for each dimension of these blocks; see `Family.config`. `mels` are the
            features per frame of sound.
        block_returns: What a block returns: 0 for the hidden states alone, n for a tuple of n of which they
            are the first.
        without: As `Family.without`, where it isn't the same in every stack.
        carries: What the first block returns beside the hidden states is an argument of all later ones (T5's
            position biases).
    """

    name: Literal["encoder", "decoder"]
    blocks: str
    projections: tuple[Projection, ...]
    config: Mapping[str, str]
    block_returns: int = 0
    carries: bool = False
    without: Mapping[str, Mapping[str, str]] | None = None


@dataclass(frozen=True)
class Family:
    """One architecture family.

    Attributes:
        name: The family's name, as shown to users.
        model_types: The `config.model_type` values that it covers.
        blocks: Path of the list of blocks, from the base model (the model without its head).
        projections: A block's linear weights, in the order in which the block computes them.
        embeddings: Paths of the embedding tables that hold vocabulary rows, from the base model.
        heads: Paths of output heads, from the full model; those that a model lacks are passed over.
        objective: `causal` (predicts the next token), `encoder` (sees all tokens, no perplexity),
            `permutation` (XLNet: sees its own targets unless masked, so no plain perplexity either), or
            `seq2seq` (the decoder predicts its next token and sees what the encoder made of its own input).
        config: The config's field for each dimension: hidden, layers, heads, kv_heads, head_dim, neurons,
            positions, vocabulary; of a mixture of experts also experts, experts_per_token, expert_neurons.
            A dimension that a family's config can't say is left out. An encoder-decoder has here those of the whole;
            positions are the decoder's.
        tied_width: The config can't say an attention that is wider or narrower than the hidden states.
        with_hidden: Config fields that are to be equal to the hidden size where they are now.
        head_attributes: What attributes inside a block say of its heads: `heads`, `kv_heads`, `group` (query heads per
            KV head) or `width` (heads x head_dim), by their path in the block.
        head_tensors: Tensors of a block beside its projections that have a slice per head: path and axis.
        without: What stands in the place of modules of a block from which a half, `attention` or `mlp`, is removed (see
            network/reshaped.py). Where nothing stands in for the attention, it stays, without a head.
        pre_norm: A config field that is False where norms follow the residual addition and stay with a removed half.
        norm: `layer`, `rms`, or `rms+1` (weights are stored less 1).
        adds: Whether what the MLP gives is added to the hidden states as it is, without a norm behind it.
        position_width: An attribute of the base model: the width of computed encodings of positions, which stay as they
            are when the hidden size shrinks.
        scaled_embedding: Embeddings are multiplied by the square root of the hidden size.
        scaled_head: A config field that is true where the head's input is divided by that root.
        block_returns: What a block returns: 0 for the hidden states alone, n for a tuple of n of which they
            are the first.
        batch_axis: The axis of the hidden states that counts windows (XLNet puts positions first).
        experts: Path, in a block, of the module that applies the experts. It is called with hidden states
            (tokens, hidden), and for each token the indices and the weights of its experts, both (tokens, chosen);
            `act_fn` is its activation. None for a family without experts.
        expert_tensors: Every tensor of a block that has an axis of experts, with that axis: the router's, too. What
            is taken from all of them at one index takes that expert away.
        files: How checkpoint files name a block's tensors, where not by their names in the model: by the tensor's
            path in the block, paths in the files. With `{}` for an expert's index there is one tensor per expert,
            and several are the rows of one.
        encoder_decoder: The encoder's and the decoder's blocks, in place of `blocks`, `projections` and
            `block_returns`.
        inputs: What a window feeds: `text` (its tokens), `halves` (the first half of its tokens to the encoder,
            the second to the decoder), or `audio` (a sound to the encoder, what was said to the decoder).
        frames_per_position: Frames of sound that become one position of the encoder.
        when: Values in the config that tell this family from another one of the same `model_type`.
    """

    name: str
    model_types: tuple[str, ...]
    blocks: str = ""
    projections: tuple[Projection, ...] = ()
    embeddings: tuple[str, ...] = ()
    heads: tuple[str, ...] = ("lm_head",)
    objective: Literal["causal", "encoder", "permutation", "seq2seq"] = "causal"
    config: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    tied_width: bool = False
    with_hidden: tuple[str, ...] = ()
    head_attributes: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    head_tensors: tuple[tuple[str, int], ...] = ()
    without: Mapping[str, Mapping[str, str]] = field(default_factory=lambda: MappingProxyType({}))
    pre_norm: str | None = None
    adds: bool = True
    position_width: str | None = None
    norm: Literal["layer", "rms", "rms+1"] = "layer"
    scaled_embedding: bool = False
    scaled_head: str | None = None
    block_returns: int = 0
    batch_axis: int = 0
    experts: str | None = None
    expert_tensors: tuple[tuple[str, int], ...] = ()
    files: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))
    encoder_decoder: tuple[Stack, Stack] | None = None
    inputs: Literal["text", "halves", "audio"] = "text"
    frames_per_position: int = 1
    when: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))

    @cached_property
    def stacks(self) -> tuple[Stack, ...]:
        """The model's lists of blocks in the order of computation; one, but for an encoder-decoder."""
        if self.encoder_decoder is not None:
            return self.encoder_decoder
        kind: Literal["encoder", "decoder"] = "decoder" if self.objective == "causal" else "encoder"
        return (Stack(kind, self.blocks, self.projections, self.config, self.block_returns),)
