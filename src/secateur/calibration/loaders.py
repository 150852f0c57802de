"""DataLoaders of the user's own as what recovery trains on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from secateur.calibration.tables import Table
from secateur.calibration.windows import Windows
from secateur.errors import UsageError

MOST = 4096  # rows of a stream, where nothing is said


@dataclass(frozen=True)
class Loaded:
    """What a DataLoader gives, row by row.

    Attributes:
        rows: Its data set.
        collate: Makes a batch of rows.
        length: How many rows are taken.
        source: Its name.
    """

    rows: Sequence[Any]
    collate: Callable[[list[Any]], Any]
    length: int
    source: str

    def __len__(self) -> int:
        return self.length

    def batch(self, places: Sequence[int]) -> Any:
        """Returns what the loader makes of some rows."""
        return self.collate([self.rows[place] for place in places])


TrainingData = Windows | Table | Loaded


def loaded(loader: DataLoader[Any], name: str, samples: int | None) -> Loaded:
    """Returns the rows of a DataLoader: of a stream the first ones, read now.

    Args:
        loader: The loader.
        name: What the recipe calls it.
        samples: Rows at most.

    Raises:
        UsageError: It is no DataLoader, or one without a batch size.
    """
    if not isinstance(loader, DataLoader):
        raise UsageError(f"data '{name}' is a {type(loader).__name__}; give a torch.utils.data.DataLoader.")
    if loader.batch_size is None and loader.batch_sampler is None:
        raise UsageError(f"the DataLoader '{name}' has no batch_size, so it isn't known what one row is; give it one.")
    data: Any = loader.dataset
    if isinstance(data, IterableDataset):
        rows = list(islice(data, samples or MOST))
        return Loaded(rows, loader.collate_fn, len(rows), name)
    return Loaded(data, loader.collate_fn, min(len(data), samples or len(data)), name)


def check_loaders(loaders: Mapping[str, Any], named: Sequence[str | None]) -> None:
    """Raises UsageError if a loader is given that no stage names as its `data`."""
    unused = [name for name in loaders if name not in named]
    if unused:
        raise UsageError(f"the loader '{unused[0]}' is named as data by no stage of the recipe that trains.")
