"""Images for models that see: a folder of them in, batches of a model's inputs out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor

from secateur.calibration.batches import Batch
from secateur.errors import CalibrationError, UsageError, first_line

SUFFIXES = (".jpg", ".jpeg", ".png")
PER_BATCH = 32


@dataclass(frozen=True)
class Pictures:
    """Image files, and their classes if they are known.

    Attributes:
        folder: What the user named.
        files: In the order of their names, class by class.
        classes: The number of each file's class; None where the folder is flat.
        by_order: Whether class folders were matched to the labels by their order, as their names aren't labels.
    """

    folder: str
    files: tuple[Path, ...]
    classes: tuple[int, ...] | None = None
    by_order: bool = False

    def __len__(self) -> int:
        return len(self.files)

    def some(self, places: Sequence[int]) -> Pictures:
        """Returns the images at some places."""
        classes = None if self.classes is None else tuple(self.classes[place] for place in places)
        return replace(self, files=tuple(self.files[place] for place in places), classes=classes)


def find_pictures(folder: str, labels: Mapping[str, int]) -> Pictures:
    """Lists the images (.jpg, .jpeg, .png) of a folder: its own, or those of its subfolders, one per class.

    Args:
        folder: The folder.
        labels: The number of each class by its name. Subfolders that have other names, as many as there are classes,
            are taken in the order of their names.

    Raises:
        UsageError: There is no such folder, it has no images, or its subfolders can't be matched to the labels.
    """
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise UsageError(f"there is no folder '{folder}'; give a folder of images ({', '.join(SUFFIXES)}).")
    flat = _images_in(path)
    inside = {one: _images_in(one) for one in sorted(path.iterdir()) if one.is_dir() and not _hidden(one)}
    inside = {one: files for one, files in inside.items() if files}
    if flat and inside:
        raise UsageError(
            f"{folder} has images of its own ({flat[0].name}) and a subfolder with some ({next(iter(inside)).name}); "
            "put all of them in one folder, or in one per class."
        )
    if not flat and not inside:
        raise UsageError(f"{folder} has no images ({', '.join(SUFFIXES)}), neither by itself nor in subfolders.")
    if flat:
        return Pictures(folder, tuple(flat))
    numbers, by_order = _numbered(folder, [one.name for one in inside], labels)
    pairs = [(file, number) for files, number in zip(inside.values(), numbers, strict=True) for file in files]
    return Pictures(folder, tuple(file for file, _ in pairs), tuple(number for _, number in pairs), by_order)


def parted(pictures: Pictures, samples: int, held_out: int, seed: int) -> tuple[Pictures, Pictures]:
    """Draws images, and others that aren't among them.

    Args:
        pictures: All.
        samples: How many of the first kind, at most.
        held_out: How many of the second kind, at most.
        seed: Of the draw.
    """
    order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(seed)).tolist()
    return pictures.some(order[:samples]), pictures.some(order[samples : samples + held_out])


class ImageBatches(Sequence[Batch]):
    """Batches of images that are read from their files whenever they are asked for."""

    def __init__(self, pictures: Pictures, processor: Any, channels: int, dtype: torch.dtype) -> None:
        """Args:
        pictures: The files.
        processor: The checkpoint's image processor.
        channels: 1 for grey images, 3 for colours.
        dtype: Of the model.
        """
        self._pictures = pictures
        self._processor = processor
        self._channels = channels
        self._dtype = dtype

    def __len__(self) -> int:
        return ceil(len(self._pictures) / PER_BATCH)

    @overload
    def __getitem__(self, index: int) -> Batch: ...
    @overload
    def __getitem__(self, index: slice) -> list[Batch]: ...
    def __getitem__(self, index: int | slice) -> Batch | list[Batch]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        places = range(len(self._pictures))[index * PER_BATCH : (index + 1) * PER_BATCH]
        if not 0 <= index < len(self):
            raise IndexError(f"there is no batch {index}.")
        some = self._pictures.some(places)
        images = [self._read(file) for file in some.files]
        for file, image in zip(some.files, images, strict=True):
            if image.shape != images[0].shape:
                raise CalibrationError(
                    f"{file} becomes {_size(image)} pixels, and {some.files[0]} {_size(images[0])}: the checkpoint's "
                    "image processor doesn't bring images to one size, so bring files of one size."
                )
        return Batch((torch.cat(images),), None if some.classes is None else torch.tensor(some.classes))

    def check(self) -> None:
        """Looks at the beginning of each file, which finds most that aren't images before any work is done.

        Raises:
            CalibrationError: One of them isn't; the message names it.
        """
        for file in self._pictures.files:
            with _opened(file) as image:
                image.verify()

    def _read(self, file: Path) -> Tensor:
        """Returns (1, channels, height, width), as the model takes it."""
        with _opened(file) as image:
            plain = image.convert("L" if self._channels == 1 else "RGB")
        try:
            found: Tensor = self._processor(images=[plain], return_tensors="pt")["pixel_values"]
        except (ValueError, TypeError, KeyError) as error:
            raise CalibrationError(
                f"the checkpoint's image processor can't take {file} ({first_line(error)}); see its "
                "preprocessor_config.json."
            ) from error
        return found.to(self._dtype)


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """Opens an image file; what goes wrong inside is an error that names it."""
    from PIL import Image  # noqa: PLC0415 (an extra, see `Classifier.processor`)

    try:
        with Image.open(file) as image:
            yield image
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise CalibrationError(f"{file} can't be read as an image ({first_line(error)}); take it out.") from error


def _images_in(folder: Path) -> list[Path]:
    return sorted(
        path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file() and not _hidden(path)
    )


def _size(image: Tensor) -> str:
    return "x".join(map(str, image.shape[-2:]))


def _hidden(path: Path) -> bool:
    return path.name.startswith(".")


def _numbered(folder: str, names: Sequence[str], labels: Mapping[str, int]) -> tuple[list[int], bool]:
    """Returns the class of each subfolder, and whether it was matched by order."""
    known = {name.casefold(): number for name, number in labels.items()}
    strangers = [name for name in names if name.casefold() not in known]
    if not strangers:
        return [known[name.casefold()] for name in names], False
    if len(strangers) == len(names) == len(labels):
        return list(range(len(names))), True
    some = ", ".join(repr(name) for name in list(labels)[:3])
    raise UsageError(
        f"{folder} has a subfolder '{strangers[0]}', which isn't a label of the model: it has {len(labels)}, such as "
        f"{some}. Name the {len(names)} subfolders as in id2label of its config.json, or have one for every label, in "
        "their order."
    )
