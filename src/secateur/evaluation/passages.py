"""Text as models with different vocabularies read it: the same stretches of text, each model's in its own tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from secateur.calibration.data import special_tokens
from secateur.calibration.windows import Windows
from secateur.errors import SecateurError, UsageError
from secateur.network.network import Network


@dataclass(frozen=True)
class Reading:
    """A passage in one model's tokens.

    Attributes:
        ids: (tokens,) int64, with the special tokens that an encoder wants around them.
        ends: (tokens of text,) int64, rising: where in the document's characters each token ends.
        start: Index of the first token of text in `ids`.
        predicted: Index of the first token that is predicted: what comes before it is the same text for all models.
    """

    ids: Tensor
    ends: Tensor
    start: int
    predicted: int


@dataclass(frozen=True)
class Passage:
    """A stretch of text that begins and ends between two tokens for every model.

    Attributes:
        readings: One per model.
        bytes: UTF-8 bytes of the text that is predicted, the same for all.
    """

    readings: tuple[Reading, ...]
    bytes: int


def same_vocabulary(networks: Sequence[Network]) -> bool:
    """Whether a token id means the same to all networks, as far as sizes and records of kept tokens tell."""
    first = networks[0]
    return all(
        network.dimension("vocabulary") == first.dimension("vocabulary")
        and (
            network.kept is first.kept
            or (network.kept is not None and first.kept is not None and torch.equal(network.kept, first.kept))
        )
        for network in networks[1:]
    )


def shared_tokens(first: Network, second: Network) -> tuple[Tensor, Tensor] | None:
    """Returns the ids of the tokens that two networks share, in each one's vocabulary, in the same order.

    Which tokens were kept comes from the networks' records; one without a record has the vocabulary that the other
    was cut from.

    Returns:
        Two (shared tokens,) int64; None if neither has a record, or the tokens of the same ids aren't spelled alike.
    """
    size = first.dimension("vocabulary")
    if first.kept is None and second.kept is None and size != second.dimension("vocabulary"):
        return None
    one, two = original_ids(first), original_ids(second)
    columns = torch.nonzero(torch.isin(one, two)).flatten(), torch.nonzero(torch.isin(two, one)).flatten()
    spelled = [
        network.tokenizer.convert_ids_to_tokens(ids.tolist())
        for network, ids in zip((first, second), columns, strict=True)
    ]
    return columns if len(columns[0]) and spelled[0] == spelled[1] else None


def original_ids(network: Network) -> Tensor:
    """Returns each token's id in the vocabulary before any cut: (vocabulary,) int64."""
    return network.kept if network.kept is not None else torch.arange(network.dimension("vocabulary") or 0)


def passages(networks: Sequence[Network], windows: Windows) -> list[Passage]:
    """Reads the windows' text by each network's own tokenizer, and cuts it into the same passages for all.

    A passage ends at the last place at which a token ends for every network and none has more than the windows'
    length. Where all networks have the same tokens, passages are the windows. Text that isn't known is decoded from
    the windows, each of which gives one passage.

    Args:
        networks: At least one, each with a fast tokenizer; the windows are in the first one's ids.
        windows: Text, and how much of it.

    Returns:
        At most as many as there are windows.

    Raises:
        UsageError: A network has no tokenizer, or a slow one.
        SecateurError: There is no place in the text that all networks have a token's end at.
    """
    for network in networks:
        if not getattr(network.tokenizer, "is_fast", False):
            raise UsageError(
                f"the models' vocabularies differ, so each must read the text by its own tokenizer, and "
                f"{network.source.name} has no fast one; put its tokenizer.json into the folder."
            )
    if windows.text is not None:
        found = list(_aligned(networks, windows.text, windows.skipped, windows.length, len(windows)))
    else:
        texts = networks[0].tokenizer.batch_decode(windows.ids, skip_special_tokens=True)
        found = [one for text in texts for one in _aligned(networks, text, 0, windows.length, 1)]
    if not found:
        raise SecateurError(
            f"the models read {windows.source} so differently that no stretch of {windows.length} tokens begins and "
            "ends at the same place for all; are they models of the same language?"
        )
    return found


def _aligned(networks: Sequence[Network], text: str, skipped: int, length: int, most: int) -> Iterator[Passage]:
    """Yields at most `most` passages of a document, from where the first network's window `skipped` begins."""
    around = [special_tokens(network) for network in networks]
    room = [length - len(before) - len(after) for before, after in around]
    tokens = [_tokens(network, text) for network in networks]
    places = _common([ends for _, ends in tokens])
    # how many tokens each network has before each common place; before the first one stands the text's begin
    counts = [torch.cat([torch.zeros(1, dtype=torch.int64), _before(ends, places)]) for _, ends in tokens]
    places = torch.cat([torch.zeros(1, dtype=torch.int64), places])
    here = int(torch.searchsorted(counts[0], skipped * room[0]))
    while here < len(places) - 1 and most:
        last = min(int(_before(count, count[here] + fits)) - 1 for count, fits in zip(counts, room, strict=True))
        if last < here + 2:  # nothing would be predicted
            here += 1
            continue
        readings = []
        for (ids, ends), (before, after), count in zip(tokens, around, counts, strict=True):
            part = slice(int(count[here]), int(count[last]))
            whole = torch.cat([torch.tensor(before).to(ids), ids[part], torch.tensor(after).to(ids)])
            first = len(before) + int(count[here + 1] - count[here])
            readings.append(Reading(whole, ends[part], len(before), first))
        yield Passage(tuple(readings), len(text[int(places[here + 1]) : int(places[last])].encode()))
        here, most = last, most - 1


def _tokens(network: Network, text: str) -> tuple[Tensor, Tensor]:
    """Returns a text's token ids, and where in its characters they end; of a character's bytes, all at its end."""
    found: Any = network.tokenizer(
        text, add_special_tokens=network.family.objective == "causal", return_offsets_mapping=True, verbose=False
    )
    offsets = torch.tensor(found["offset_mapping"], dtype=torch.int64).view(-1, 2)
    ends = offsets[:, 1].cummax(0).values if len(offsets) else offsets[:, 1]
    return torch.tensor(found["input_ids"], dtype=torch.int64), ends


def _common(ends: Sequence[Tensor]) -> Tensor:
    """Returns the places that occur in all."""
    places: Tensor = ends[0].unique()
    for other in ends[1:]:
        places = places[torch.isin(places, other)]
    return places


def _before(rising: Tensor, value: Tensor) -> Tensor:
    """Returns how many entries are at most `value`."""
    found: Tensor = torch.searchsorted(rising, value, right=True)
    return found


def agreeing(first: Reading, second: Reading, one: Tensor, two: Tensor) -> tuple[Tensor, Tensor]:
    """Returns where two readings of a passage have the same token after the same text.

    After a text that ends inside of a character, tokens agree only if all of both readings do.

    Args:
        first, second: The readings.
        one, two: Each network's original ids (`original_ids`).

    Returns:
        Indices into the first one's ids and into the second one's, of the same length.
    """
    text = [reading.ids[reading.start : reading.start + len(reading.ends)] for reading in (first, second)]
    one, two = one[text[0]], two[text[1]]
    if torch.equal(one, two):
        every = torch.arange(len(one))
        return every + first.start, every + second.start
    pairs = []
    places = _common([first.ends, second.ends])
    left = right = 0
    stops = (_before(reading.ends, places).tolist() for reading in (first, second))
    for end_left, end_right in zip(*stops, strict=True):
        for i, j in zip(range(left, end_left), range(right, end_right), strict=False):
            if one[i] != two[j]:
                break
            pairs.append((i + first.start, j + second.start))
        left, right = end_left, end_right
    found = torch.tensor(pairs, dtype=torch.int64).view(-1, 2)
    return found[:, 0], found[:, 1]
