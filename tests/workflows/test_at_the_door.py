"""A sweep whose data set and classifier do not go together ends before any compute, at its place in the file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from workflows.cli import app

PLUGINS = """
import numpy as np
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

import defense
from defense.classifiers import CLASSIFIERS, Architecture
from defense.classifiers.digits_cnn import DigitsCNN
from tasks.datasets import DatasetConfig, DigitsConfig, ImageSet

WEIGHTS = Path(defense.__file__).parent / "assets/digits-cnn/model.safetensors"


class Digits(DatasetConfig):
    names: tuple[str, ...] = tuple("0123456789")

    @property
    def image_shape(self):
        return 1, 8, 8

    @property
    def class_names(self):
        return self.names

    def read(self):
        return self.handed(DigitsConfig().read())

    def handed(self, data):
        return data


class Sound(Digits):
    dataset: str = "doors:Sound"


class Reversed(Digits):
    dataset: str = "doors:Reversed"
    names: tuple[str, ...] = tuple("9876543210")


class Words(Digits):
    dataset: str = "doors:Words"
    names: tuple[str, ...] = tuple("zero one two three four five six seven eight nine".split())


class Bytes(Digits):
    dataset: str = "doors:Bytes"

    def handed(self, data):
        return ImageSet(data.images * 255, data.labels)


class Sorted(Digits):
    dataset: str = "doors:Sorted"

    def handed(self, data):
        order = np.argsort(data.labels, kind="stable")
        return ImageSet(data.images[order], data.labels[order])


class Repeated(Digits):
    dataset: str = "doors:Repeated"

    def handed(self, data):
        chosen = np.arange(599) % 60
        return ImageSet(data.images[chosen], data.labels[chosen])


class Dropping(DigitsCNN):
    def classify(self, latent):
        return super().classify(nn.functional.dropout(latent, 0.5, training=True))


class BatchMean(DigitsCNN):
    def classify(self, latent):
        return super().classify(latent - latent.mean(0))


class Tuple(DigitsCNN):
    def forward(self, x):
        return {"logits": super().forward(x)}


DROPPING = Architecture(Dropping, (1, 8, 8), 10, (0.3,), (0.4,), weights=WEIGHTS)
BATCH = Architecture(BatchMean, (1, 8, 8), 10, (0.3,), (0.4,), weights=WEIGHTS)
TUPLE = Architecture(Tuple, (1, 8, 8), 10, (0.3,), (0.4,), weights=WEIGHTS)
"""


@pytest.fixture(autouse=True)
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "doors.py").write_text(PLUGINS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "doors", raising=False)


def planned(tmp_path: Path, dataset: str, classifier: str = "digits-cnn", *words: str) -> tuple[int, str]:
    path = tmp_path / "sweep.yaml"
    path.write_text(
        f"sweep: door\ndatasets:\n  - {dataset}\nclassifiers:\n  - {classifier}\ndefences: [none]\nattacks: [none]\n"
    )
    result = CliRunner().invoke(app, ["plan", str(path), "--store", str(tmp_path / "store"), *words])
    return result.exit_code, result.output


@pytest.mark.parametrize(
    ("dataset", "classifier", "line", "words"),
    [
        ("{dataset: 'doors:Bytes'}", "digits-cnn", 3, ["0 to 255", "divide by 255"]),
        ("{dataset: 'doors:Repeated'}", "digits-cnn", 3, ["539 of the 599 selected images repeat"]),
        ("{dataset: 'doors:Sorted', images: {first: 40}}", "digits-cnn", 3, ["are of class 0", "every: N"]),
        ("{dataset: 'doors:Reversed'}", "digits-cnn", 5, ["class 0 is '9'", "'0' for classifier", "another order"]),
        ("{dataset: 'doors:Words'}", "digits-at", 5, ["class 0 is 'zero'", "'digits-at'"]),
        ("digits", "'doors:DROPPING'", 5, ["put randomness into a purifier"]),
        ("digits", "'doors:BATCH'", 5, ["alone and in a batch"]),
    ],
)
def test_what_does_not_go_together_is_refused_at_its_line(
    tmp_path: Path, dataset: str, classifier: str, line: int, words: list[str]
) -> None:
    code, output = planned(tmp_path, dataset, classifier)
    assert code == 2, output
    assert f"sweep.yaml:{line}" in output
    for word in words:
        assert word in output


def test_another_number_of_classes_is_refused(tmp_path: Path) -> None:
    for name in ("ant", "bee", "cat"):
        folder = tmp_path / "data" / "test" / name
        folder.mkdir(parents=True)
        for number in range(3):
            pixels = np.random.default_rng([number, len(name), ord(name[0])]).integers(0, 256, (32, 32, 3), np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    (tmp_path / "data" / "test" / ".ipynb_checkpoints").mkdir()
    (tmp_path / "data" / "test" / "ant" / "notes.txt").write_text("x")
    (tmp_path / "net.pth").write_bytes(b"x")
    dataset = "{dataset: folder, root: data, resize: 32, crop: 32}"
    code, output = planned(tmp_path, dataset, "{classifier: resnet20, weights: net.pth}", "--no-preflight")
    assert code == 2, output
    assert "has 10 classes" in output and "has 3 (ant, bee, cat)" in output


def test_sound_parts_pass_and_what_is_meant_is_accepted(tmp_path: Path) -> None:
    for dataset in (
        "{dataset: 'doors:Sound'}",
        "{dataset: 'doors:Repeated', accept: [duplicates]}",
        "{dataset: 'doors:Sorted', images: {first: 40}, accept: [one-class]}",
    ):
        code, output = planned(tmp_path, dataset)
        assert code == 0, output
    code, output = planned(tmp_path, "digits", "'doors:TUPLE'", "--json")
    assert code == 0, output
    assert json.loads(output[output.index("{") :])["cells"] == 1


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("raise RuntimeError('no licence')", ["raises RuntimeError: no licence", "doors.py:1"]),
        ("import sys\nsys.exit(3)", ["raises SystemExit"]),
        ("class Broken(:", ["raises SyntaxError"]),
        ("import nothing_of_that_name", ["No module named 'nothing_of_that_name'"]),
        ("x = 1", ["no attribute 'Sound'"]),
        ("Sound = 3", ["what is named here must be a class"]),
    ],
)
def test_code_that_cannot_be_imported_has_its_cause_and_line(tmp_path: Path, code: str, words: list[str]) -> None:
    (tmp_path / "doors.py").write_text(code)
    status, output = planned(tmp_path, "{dataset: 'doors:Sound'}")
    assert status == 2, output
    assert "sweep.yaml:3" in output
    for word in words:
        assert word in output
