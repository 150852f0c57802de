"""Folders of images: what is found in them, which class it has, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image

from secateur.calibration.images import ImageBatches, find_pictures, parted
from secateur.errors import CalibrationError, UsageError
from tiny_vision import BY_NAME, COLOURS, SIZE, draw

LABELS = {name: place for place, name in enumerate(COLOURS)}


def batches(folder: Path, channels: int = 3, **options: Any) -> ImageBatches:
    processor = transformers.ViTImageProcessorPil(size={"height": SIZE, "width": SIZE}, **options)
    return ImageBatches(find_pictures(str(folder), LABELS), processor, channels, torch.float32)


def test_a_flat_folder_has_no_classes(tmp_path: Path) -> None:
    (draw(tmp_path, 3) / "notes.txt").write_text("not an image")
    (tmp_path / ".hidden.png").write_text("neither")
    (tmp_path / "empty").mkdir()
    found = find_pictures(str(tmp_path), LABELS)
    assert [file.name for file in found.files] == sorted(file.name for file in tmp_path.glob("[a-z]*.[jp]*"))
    assert len(found) == 9
    assert found.classes is None


def test_subfolders_are_matched_by_name_or_else_by_order(tmp_path: Path) -> None:
    found = find_pictures(str(draw(tmp_path / "named", 2, {"red": "Red", "green": "green", "blue": "blue"})), LABELS)
    assert [(file.parent.name, number) for file, number in zip(found.files, found.classes, strict=True)] == [
        *[("Red", 0)] * 2, *[("blue", 2)] * 2, *[("green", 1)] * 2,
    ]  # fmt: skip
    assert not found.by_order
    ordered = find_pictures(str(draw(tmp_path / "other", 1, {"red": "n1", "green": "n2", "blue": "n0"})), LABELS)
    assert ordered.classes == (0, 1, 2)
    assert ordered.files[0].name.startswith("blue")
    assert ordered.by_order


def test_batches_are_what_the_processor_makes_of_each_image(tmp_path: Path) -> None:
    draw(tmp_path, 12, BY_NAME)
    found = batches(tmp_path)
    assert [batch.size for batch in found] == [32, 4]
    assert found[0].inputs[0].shape == (32, 3, SIZE, SIZE)
    assert [batch.size for batch in found[1:]] == [4]
    with pytest.raises(IndexError):
        found[2]
    assert torch.cat([batch.target for batch in found]).bincount().tolist() == [12, 12, 12]
    redness = found[1].inputs[0].mean((0, 2, 3))
    assert found[1].target.tolist() == [0] * 4
    assert redness.argmax() == 0


def test_grey_images_have_one_channel_and_a_processor_for_colours_does_not_take_them(tmp_path: Path) -> None:
    draw(tmp_path, 1)
    assert batches(tmp_path, 1, image_mean=[0.5], image_std=[0.2])[0].inputs[0].shape == (3, 1, SIZE, SIZE)
    with pytest.raises(CalibrationError, match=r"image processor can't take .*blue0\.jpg \(mean must have 1 elements"):
        batches(tmp_path, 1)[0]


def test_what_is_drawn_for_calibration_is_not_held_out(tmp_path: Path) -> None:
    found = find_pictures(str(draw(tmp_path, 5, BY_NAME)), LABELS)
    some, rest = parted(found, 9, 4, seed=3)
    assert (len(some), len(rest)) == (9, 4)
    assert not set(some.files) & set(rest.files)
    assert all(LABELS[file.parent.name] == number for file, number in zip(some.files, some.classes, strict=True))
    assert parted(found, 9, 4, seed=3)[0] == some
    assert parted(found, 9, 4, seed=4)[0] != some


def broken(tmp_path: Path) -> Path:
    (draw(tmp_path, 1) / "bad.jpg").write_bytes(b"\xff\xd8\xff\xe0 not much of an image")
    return tmp_path


def cut_off(tmp_path: Path) -> Path:
    image = draw(tmp_path, 1) / "red0.jpg"
    image.write_bytes(image.read_bytes()[:-200])
    return tmp_path


@pytest.mark.parametrize(("spoil", "name"), [(broken, "bad.jpg"), (cut_off, "red0.jpg")])
def test_an_unreadable_image_is_named(spoil: object, name: str, tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=rf"{name} can't be read as an image"):
        batches(spoil(tmp_path))[0]  # type: ignore[operator]


def test_a_check_finds_what_is_no_image_before_it_is_needed(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"bad\.jpg can't be read"):
        batches(broken(tmp_path)).check()


def test_images_of_several_sizes_are_an_error_where_the_processor_keeps_them(tmp_path: Path) -> None:
    for number, size in enumerate([(40, 40), (80, 40)]):
        Image.new("RGB", size).save(tmp_path / f"{number}.png")
    with pytest.raises(CalibrationError, match=r"1\.png becomes 40x80 pixels, and .*0\.png 40x40"):
        batches(tmp_path, do_resize=False)[0]


def mixed(folder: Path) -> Path:
    return draw(draw(folder, 1), 1, BY_NAME)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: folder / "nowhere", "there is no folder"),
        (lambda folder: folder, "has no images"),
        (mixed, r"images of its own \(blue0\.jpg\) and a subfolder"),
        (lambda folder: draw(folder, 1, {**BY_NAME, "red": "rouge"}), "'rouge', which isn't a label of the model"),
        (lambda folder: draw(folder, 1, {**BY_NAME, "red": "a", "green": "a", "blue": "b"}), "Name the 2 subfolders"),
    ],
)
def test_folders_that_make_no_sense_are_named(make: object, words: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=words):
        find_pictures(str(make(tmp_path)), LABELS)  # type: ignore[operator]
