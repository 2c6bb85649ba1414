"""Folders of pictures as people have them: nothing is left out without a word, and each is read as it is."""

from __future__ import annotations

import os
import random
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from defense.errors import InvalidInput
from tasks.datasets import FolderConfig
from tasks.picture_files import ACCEPTED, MOST_PIXELS, decoded

SIDE = 16


def picture(path: Path, seed: int = 0, side: int = SIDE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for number, name in enumerate(("cat", "dog", "owl")):
        for index in range(3):
            picture(tmp_path / "test" / name / f"{index}.png", 10 * number + index)
    return tmp_path


def config(root: Path, **fields: object) -> FolderConfig:
    return FolderConfig.model_validate({"root": str(root), "resize": SIDE, "crop": SIDE, **fields})


def refused(root: Path, **fields: object) -> str:
    with pytest.raises(InvalidInput) as error:
        config(root, **fields).resolved(root)
    return str(error.value)


@pytest.mark.parametrize("name", [".ipynb_checkpoints", ".git", ".cache"])
def test_hidden_folders_are_no_class_and_shift_no_label(root: Path, name: str) -> None:
    before = config(root).resolved(root)
    picture(root / "test" / name / "a.png", 99)
    picture(root / "test" / "cat" / name / "b.png", 98)
    picture(root / "test" / "dog" / f"{name}.png", 97)
    after = config(root).resolved(root)
    assert after.digest == before.digest
    assert after.class_names == ("cat", "dog", "owl") and after.notices() == ()


def test_links_to_folders_and_files_are_followed(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    picture(elsewhere / "more" / "x.png", 50)
    picture(elsewhere / "y.png", 51)
    (root / "test" / "cat" / "linked").symlink_to(elsewhere / "more")
    (root / "test" / "dog" / "y.png").symlink_to(elsewhere / "y.png")
    data = config(root).resolved(root).load()
    assert np.bincount(data.labels).tolist() == [4, 4, 3]


def test_a_class_folder_may_be_a_link(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    picture(elsewhere / "x.png", 60)
    (root / "test" / "bee").symlink_to(elsewhere)
    found = config(root).resolved(root)
    assert found.class_names == ("bee", "cat", "dog", "owl") and found.load().labels.tolist()[0] == 0


def test_a_dangling_link_is_named(root: Path) -> None:
    (root / "test" / "cat" / "lost.png").symlink_to(root / "nowhere.png")
    assert "lost.png" in (message := refused(root)) and "is not there" in message


def test_a_link_in_a_circle_is_named(root: Path) -> None:
    (root / "test" / "cat" / "again").symlink_to(root / "test" / "cat")
    assert "again" in (message := refused(root)) and "above it" in message


def test_a_pipe_is_named_and_not_waited_for(root: Path) -> None:
    os.mkfifo(root / "test" / "cat" / "pipe.png")
    assert "pipe.png" in refused(root)


@pytest.mark.parametrize("name", ["a.tif", "b.TIFF", "c.gif", "d.ppm", "e.heic", "f.npy", "g.svg"])
def test_pictures_of_other_kinds_are_refused_by_name(root: Path, name: str) -> None:
    (root / "test" / "dog" / name).write_bytes(b"x")
    message = refused(root)
    assert name in message and all(suffix in message for suffix in ACCEPTED)


def test_everything_else_is_reported(root: Path) -> None:
    (root / "test" / "dog" / "Thumbs.db").write_bytes(b"x")
    (root / "test" / "cat" / "notes.txt").write_bytes(b"x")
    (root / "test" / "README.md").write_bytes(b"x")
    notices = config(root).resolved(root).notices()
    text = " ".join(notices)
    assert len(notices) == 2 and all(name in text for name in ("Thumbs.db", "notes.txt", "README.md"))


def test_folders_that_the_list_of_classes_does_not_name_are_reported(root: Path) -> None:
    (root / "classes.txt").write_text("cat\nowl\n")
    (notice,) = config(root, classes="classes.txt").resolved(root).notices()
    assert "dog" in notice and "cat" not in notice


def grey(values: npt.NDArray[np.uint16], path: Path) -> Path:
    Image.fromarray(values).save(path)
    return path


def test_sixteen_bits_of_grey_are_scaled_and_not_cut(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    found = np.asarray(decoded(str(grey(ramp, tmp_path / "ramp.png"))))
    assert np.array_equal(found[..., 0], np.round(ramp.astype(float) * 255 / 65535).astype(np.uint8))
    assert abs(found.mean() / 255 - 0.5) < 0.01  # cut at 255 the mean would be 0.997
    dark = np.full((16, 16), 257 * 12, np.uint16)
    assert np.asarray(decoded(str(grey(dark, tmp_path / "dark.png")))).max() == 12


def test_eight_bits_of_any_mode_are_as_pillow_has_them(tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    original = Image.fromarray(pixels)
    for mode in ("RGB", "L", "P", "1", "RGBA", "LA"):
        path = tmp_path / f"{mode}.png"
        original.convert(mode).save(path)
        with Image.open(path) as image:
            assert np.array_equal(np.asarray(decoded(str(path))), np.asarray(image.convert("RGB"))), mode


def test_a_picture_that_is_too_large_is_refused_before_it_is_decoded(root: Path) -> None:
    side = int(MOST_PIXELS**0.5) + 50
    Image.new("1", (side, side)).save(root / "test" / "owl" / "huge.png")
    assert "huge.png" in (message := refused(root)) and "pixels" in message


def test_a_moving_picture_is_refused(root: Path) -> None:
    frames = [Image.fromarray(np.full((16, 16, 3), shade, np.uint8)) for shade in (0, 255)]
    frames[0].save(root / "test" / "owl" / "moves.webp", save_all=True, append_images=frames[1:])
    assert "moves.webp" in (message := refused(root)) and "2 frames" in message


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".webp"])
def test_damaged_pictures_are_refused_by_name_or_decode(tmp_path: Path, suffix: str) -> None:
    whole = picture(tmp_path / f"whole{suffix}", 3).read_bytes()
    generator = random.Random(suffix)
    outcomes = []
    for number in range(12):
        damaged = bytearray(whole)
        if number % 3 == 0:
            damaged = damaged[: generator.randrange(len(damaged))]
        else:
            for _ in range(1 + number):
                damaged[generator.randrange(len(damaged))] = generator.randrange(256)
        path = tmp_path / f"{number}{suffix}"
        path.write_bytes(bytes(damaged))
        try:
            outcomes.append(decoded(str(path)).mode)
        except InvalidInput as error:
            assert path.name in str(error)
            outcomes.append("refused")
    assert "refused" in outcomes and set(outcomes) <= {"RGB", "refused"}


def test_a_list_of_classes_that_is_no_text_is_refused(root: Path) -> None:
    (root / "classes.txt").write_bytes(b"\xff\xfe\x00cat")
    assert "UTF-8" in refused(root, classes="classes.txt")
