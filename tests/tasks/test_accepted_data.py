"""Every line of the tables in docs/accepted-data.md, executed on something that is made here."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from defense.classifiers.examine import examine, logits_of
from defense.errors import InvalidInput
from tasks.datasets import DatasetConfig, DigitsConfig, FolderConfig, ImageSet

PAGE = Path(__file__).parents[2] / "docs" / "accepted-data.md"
SIDE = 16


def lines(place: int) -> list[tuple[str, str]]:
    """The rows of the page's table of that number."""
    tables: list[list[tuple[str, str]]] = []
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if len(cells) == 2 and not set(cells[0]) <= set("-"):
            if cells[0] in ("accepted", "refused"):
                tables.append([])
            else:
                tables[-1].append((cells[0], cells[1]))
    assert len(tables) == 6
    return tables[place]


def pixels(seed: int = 0) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


def folder(tmp_path: Path) -> Path:
    for number, name in enumerate(("cat", "dog")):
        (tmp_path / "test" / name).mkdir(parents=True)
        Image.fromarray(pixels(number)).save(tmp_path / "test" / name / "a.png")
    return tmp_path / "test" / "cat"


def read(root: Path, **fields: object) -> tuple[ImageSet, tuple[str, ...]]:
    config = FolderConfig.model_validate({"root": str(root), "resize": SIDE, "crop": SIDE, **fields}).resolved(root)
    return config.load(), config.notices()


def kinds_of_files(cat: Path, root: Path) -> None:
    for suffix in (".bmp", ".jpeg", ".jpg", ".png", ".webp", ".PNG", ".JPG"):
        Image.fromarray(pixels(5)).save(cat / f"x{suffix.replace('.', '_')}{suffix}")
    assert len(read(root)[0]) == 9


def modes(cat: Path, root: Path) -> None:
    for mode in ("L", "P", "1", "RGBA", "LA"):
        Image.fromarray(pixels(6)).convert(mode).save(cat / f"{mode}.png")
    assert len(read(root)[0]) == 7


def sixteen_bits(cat: Path, root: Path) -> None:
    ramp = np.linspace(0, 65535, SIDE * SIDE).astype(np.uint16).reshape(SIDE, SIDE)
    Image.fromarray(ramp).save(cat / "b.png")
    assert abs(float(read(root)[0].images[1].mean()) - 0.5) < 0.01


def hidden(cat: Path, root: Path) -> None:
    (cat.parent / ".cache").mkdir()
    Image.fromarray(pixels()).save(cat / ".b.png")
    assert len(read(root)[0]) == 2 and read(root)[1] == ()


def links(cat: Path, root: Path) -> None:
    (root / "elsewhere").mkdir()
    Image.fromarray(pixels(7)).save(root / "elsewhere" / "c.png")
    (cat / "linked").symlink_to(root / "elsewhere")
    (cat / "d.png").symlink_to(root / "elsewhere" / "c.png")
    assert len(read(root)[0]) == 4


def others(cat: Path, root: Path) -> None:
    (cat / "notes.txt").write_text("x")
    assert len(read(root)[0]) == 2 and "notes.txt" in read(root)[1][0]


def unlisted(cat: Path, root: Path) -> None:
    (root / "classes.txt").write_text("dog\n")
    data, notices = read(root, classes="classes.txt")
    assert len(data) == 1 and "cat" in notices[0]


def moving(cat: Path) -> None:
    frames = [Image.fromarray(np.full((SIDE, SIDE, 3), shade, np.uint8)) for shade in (0, 255)]
    frames[0].save(cat / "b.webp", save_all=True, append_images=frames[1:])


PICTURES: dict[str, Callable[[Path, Path], None]] = {
    ".bmp, .jpeg, .jpg, .png, .webp": kinds_of_files,
    "grey, palette, one bit, transparency": modes,
    "grey of 16 bits": sixteen_bits,
    "hidden names": hidden,
    "links to files and folders": links,
    "other files": others,
    "folders that `classes` does not name": unlisted,
}
BAD_PICTURES: dict[str, Callable[[Path], object]] = {
    "pictures of other kinds": lambda cat: (cat / "b.tiff").write_bytes(b"x"),
    "truncated picture": lambda cat: (cat / "a.png").write_bytes((cat / "a.png").read_bytes()[:200]),
    "moving picture": moving,
    "more than 50 million pixels": lambda cat: Image.new("1", (7100, 7100)).save(cat / "b.png"),
    "dangling link": lambda cat: (cat / "b.png").symlink_to("nowhere.png"),
    "link in a circle": lambda cat: (cat / "b").symlink_to(cat),
    "pipe or device": lambda cat: os.mkfifo(cat / "b.png"),
    "class without pictures": lambda cat: (cat / "a.png").unlink(),
}


@pytest.mark.parametrize("line", lines(0), ids=lambda line: line[0])
def test_a_picture_file_that_is_accepted(line: tuple[str, str], tmp_path: Path) -> None:
    PICTURES[line[0]](folder(tmp_path), tmp_path)


@pytest.mark.parametrize("line", lines(1), ids=lambda line: line[0])
def test_a_picture_file_that_is_refused(line: tuple[str, str], tmp_path: Path) -> None:
    BAD_PICTURES[line[0]](folder(tmp_path))
    with pytest.raises(InvalidInput, match=re.escape(line[1])):
        read(tmp_path)


DIGITS = DigitsConfig().read()
IMAGES, LABELS = DIGITS.images, DIGITS.labels
ORDER = np.argsort(LABELS, kind="stable")
FEW, MANY = np.concatenate([np.arange(590), [0]]), np.concatenate([np.arange(590), np.arange(20)])

DATA: dict[str, list[tuple[Any, Any, dict[str, Any]]]] = {
    "float32 in [0, 1], shape (N, C, H, W)": [(IMAGES, LABELS, {})],
    "float16, float64": [(IMAGES.astype(kind), LABELS, {}) for kind in (np.float16, np.float64)],
    "labels of any integer type": [(IMAGES, LABELS.astype(kind), {}) for kind in (np.uint8, np.int32)],
    "repeated images, up to 1 %": [
        (IMAGES[FEW], LABELS[FEW], {}),
        (IMAGES[MANY], LABELS[MANY], {"accept": ("duplicates",)}),
    ],
    "one class alone": [
        (IMAGES[ORDER[:9]], LABELS[ORDER[:9]], {}),
        (IMAGES[ORDER[:20]], LABELS[ORDER[:20]], {"accept": ("one-class",)}),
    ],
}
BAD_DATA: dict[str, tuple[Any, Any]] = {
    "0 to 255": (IMAGES * 255, LABELS),
    "[-1, 1]": (IMAGES * 2 - 1, LABELS),
    "standardised": ((IMAGES - 0.3) / 0.4, LABELS),
    "divided by 255 twice": (IMAGES / 255, LABELS),
    "uint8": ((IMAGES * 255).astype(np.uint8), LABELS),
    "NaN": (np.where(IMAGES == 1, np.nan, IMAGES), LABELS),
    "(N, H, W, C)": (IMAGES.transpose(0, 2, 3, 1), LABELS),
    "without a channel": (IMAGES[:, 0], LABELS),
    "torch tensor": (torch.from_numpy(IMAGES.copy()), LABELS),
    "more images than labels": (IMAGES, LABELS[:-3]),
    "label -1": (IMAGES, np.where(LABELS == 4, -1, LABELS)),
    "labels from 1": (IMAGES, LABELS + 1),
    "one-hot labels": (IMAGES, np.eye(10, dtype=int)[LABELS]),
    "repeated images, more than 1 %": (IMAGES[MANY], LABELS[MANY]),
    "ten images of one class": (IMAGES[ORDER[:10]], LABELS[ORDER[:10]]),
}


class Returned(DatasetConfig):
    """A data set that returns whatever it is told to."""

    returned: ClassVar[Any] = DIGITS
    dataset: str = "returned"

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return 1, 8, 8

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple("0123456789")

    def read(self) -> ImageSet:
        return type(self).returned  # type: ignore[no-any-return]


def entered(images: Any, labels: Any, **fields: Any) -> ImageSet:
    Returned.returned = ImageSet(images, labels)
    config = Returned(**fields).resolved(Path())
    assert isinstance(config, Returned)
    data = config.load()
    config.check_selected(range(len(data)))
    return data


@pytest.mark.parametrize("line", lines(2), ids=lambda line: line[0])
def test_a_data_set_that_is_accepted(line: tuple[str, str]) -> None:
    for images, labels, fields in DATA[line[0]]:
        data = entered(images, labels, **fields)
        assert np.array_equal(data.images, np.asarray(images, np.float32)) and data.labels.dtype == np.int64


@pytest.mark.parametrize("line", lines(3), ids=lambda line: line[0])
def test_a_data_set_that_is_refused(line: tuple[str, str]) -> None:
    with pytest.raises(InvalidInput, match=re.escape(line[1])):
        entered(*BAD_DATA[line[0]])


class Net(nn.Module):
    """A linear classifier with something done to its logits."""

    def __init__(self, after: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 10)
        self.register_buffer("calls", torch.zeros(()))
        self.after = after

    def forward(self, x: Tensor) -> Any:
        return self.after(self.linear(x.flatten(1)))


class Counts(Net):
    def forward(self, x: Tensor) -> Any:
        self.calls = self.calls + 1
        return super().forward(x)


class StaysInTraining(Net):
    def train(self, mode: bool = True) -> StaysInTraining:
        return super().train(True)


ANSWERS: dict[str, list[Callable[[Tensor], Any]]] = {
    "tensor (B, classes)": [lambda logits: logits, lambda logits: logits.bfloat16()],
    "mapping or object with `logits`": [
        lambda logits: {"logits": logits, "loss": None},
        lambda logits: SimpleNamespace(logits=logits),
    ],
    "tuple or list with one tensor (B, classes)": [
        lambda logits: (logits, logits[:, :3]),
        lambda logits: [logits.mean(), logits],
    ],
}
BAD_ANSWERS: dict[str, Callable[[], Net]] = {
    "two tensors (B, classes)": lambda: Net(lambda logits: logits_of((logits, logits), 10)),
    "other number of classes": lambda: Net(lambda logits: logits[:, :9]),
    "NaN logits": lambda: Net(lambda logits: logits / 0 * 0),
    "random answers": lambda: Net(lambda logits: logits + torch.randn_like(logits)),
    "batch statistics": lambda: Net(
        lambda logits: (logits - logits.mean(0)) / (logits.std(0, unbiased=False) + 1e-3)
    ),
    "state that is written": lambda: Counts(lambda logits: logits),
    "training mode": lambda: StaysInTraining(lambda logits: logits),
}


@pytest.mark.parametrize("line", lines(4), ids=lambda line: line[0])
def test_an_answer_that_is_accepted(line: tuple[str, str]) -> None:
    for after in ANSWERS[line[0]]:
        torch.manual_seed(0)
        net = Net(after).eval()
        x = torch.rand(4, 1, 8, 8)
        logits = logits_of(net(x), 10)
        torch.testing.assert_close(logits.float(), net.linear(x.flatten(1)), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("line", lines(5), ids=lambda line: line[0])
def test_an_answer_that_is_refused(line: tuple[str, str]) -> None:
    torch.manual_seed(0)
    with pytest.raises(InvalidInput, match=re.escape(line[1])):
        examine(BAD_ANSWERS[line[0]]().eval(), name="mine", image_shape=(1, 8, 8), classes=10)
