"""Rules for corruptions: corrupted against clean, parts of the benchmark, generated images."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest
from audited_certified import Audited, Chance
from PIL import Image

from defense.classifiers import ClassifierConfig
from defense.purifiers import NoPurifierConfig
from tasks.compute import Compute
from tasks.corruptions import BENCHMARK, FROST_FILES
from tasks.corruptions.config import CorruptionConfig
from tasks.datasets import Cifar10Config, DigitsConfig
from tasks.stages import (
    Chunk,
    CorruptStage,
)
from workflows.audit import findings
from workflows.audit.rules.corruptions import generated
from workflows.audit.view import View
from workflows.grid.cells import Cell, Defence, Images
from workflows.results.reader import Results


def on_corruptions(accuracy: dict[str, float]) -> Chance:
    """The first images are right on every draw; by ``name severity`` of the corruption, clean is ``clean``."""

    def chance(spec: Any, ids: npt.NDArray[np.int64]) -> npt.ArrayLike:
        if isinstance(spec.source, CorruptStage):
            share = accuracy.get(spec.source.corruption.label(), 0.5)
        else:
            share = accuracy["clean"]
        return (ids < round(share * 520)).astype(float)

    return chance


def corrupted(folder: Path, accuracy: dict[str, float], **parts: Any) -> Audited:
    threats = "attacks: [none]\ncorruptions: [{corruption: [fog, contrast], severity: [1, 3]}]"
    given = {"defences": "none", "threats": threats, "images": 520, **parts}
    return Audited(folder, on_corruptions(accuracy), **given)


def test_corrupted_above_clean_is_a_warning_or_a_note_if_mild(tmp_path: Path) -> None:
    severe = corrupted(tmp_path / "a", {"clean": 0.8, "fog 1": 0.9, "fog 3": 0.85, "contrast 3": 0.8})
    finding = severe.one("corrupted-above-clean")
    assert finding.severity == "warning"
    evidence = finding.evidence
    assert (evidence["corrupted"], evidence["clean"], evidence["cells"]) == (0.9, 0.8, 2)
    assert evidence["p"] == pytest.approx(4 * 0.5**52)  # 52 images one way, and four cells were compared
    labels = [severe.sweep.labels[cell] for cell in finding.cells]
    assert [label.get("corruption", label.get("attack")) for label in labels] == ["fog 1", "fog 3", "clean"]
    mild = corrupted(tmp_path / "b", {"clean": 0.8, "fog 1": 0.9})
    assert mild.one("corrupted-above-clean").severity == "note"
    assert not corrupted(tmp_path / "c", {"clean": 0.8, "fog 1": 0.8, "fog 3": 0.8}).of("corrupted-above-clean")


@pytest.mark.parametrize(("more", "fires"), [(8, False), (9, True)])
def test_corrupted_cells_share_the_level(tmp_path: Path, more: int, fires: bool) -> None:
    """Four of them: 4 * 0.5 ** 8 = 0.016, 4 * 0.5 ** 9 = 0.008."""
    audited = corrupted(tmp_path, {"clean": 400 / 520, "fog 3": (400 + more) / 520})
    assert bool(audited.of("corrupted-above-clean")) is fires


@pytest.fixture(scope="module")
def frost(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("frost")
    for name in FROST_FILES:
        Image.new("RGB", (300, 250)).save(folder / name)
    return folder


def test_a_mean_over_part_of_the_benchmark_says_so(tmp_path: Path, frost: Path) -> None:
    four = corrupted(tmp_path / "a", {"clean": 0.9})
    part = four.one("incomplete-benchmark")
    assert part.severity == "note"
    assert part.evidence == {"corruptions": 2, "severities": 2, "cells": 4}
    assert len(part.cells) == 4
    whole = f"corruptions: [{{corruption: benchmark, photographs: {frost.as_posix()}}}]"
    audited = corrupted(tmp_path / "b", {"clean": 0.9}, threats=whole, images=20)
    assert len(audited.sweep.corrupted) == len(BENCHMARK) * 5
    assert audited.rules() == {"few-images"}
    # A cell that lacks some of its images, or all of them, is not in the mean.
    for sweep, expected in ((four, (2, 1, 3)), (audited, (15, 4, 74))):
        cell = sweep.sweep.corrupted[3]
        sweep.store.revoke("evaluate", cell.evaluate.id, cell.images.chunks[0].name)
        again = findings(Results(sweep.store, sweep.sweep), images=False)
        evidence = next(finding.evidence for finding in again if finding.rule == "incomplete-benchmark")
        assert tuple(evidence.values()) == expected
    extra = "corruptions: [{corruption: extra}]"
    assert corrupted(tmp_path / "c", {"clean": 0.9}, threats=extra, images=20).rules() == {"few-images"}


def test_generated_images_are_noted_where_there_are_published_ones(tmp_path: Path) -> None:
    """CIFAR-10 has published arrays of its test images; its training images and digits have none."""

    class Two(View):
        @property
        def image_ids(self) -> npt.NDArray[np.int64]:
            return np.arange(2)

    def view(dataset: Any, origin: str) -> View:
        fog = CorruptionConfig.model_validate({"corruption": "fog", "severity": 2, "origin": origin})
        images = Images(dataset, (Chunk((0, 1)),))
        defence = Defence(NoPurifierConfig(), 1, "single")
        classifier = ClassifierConfig(classifier="resnet20", sha256="0" * 64)
        cell = Cell(images, classifier, defence, fog, 0, Compute())
        return Two(cell, (cell.id,), cast(Results, None))

    cifar = Cifar10Config(digest="d", root=None)
    own, official = view(cifar, "generated"), view(cifar, "official")
    (finding,) = generated([own, official], [])
    assert (finding.severity, finding.rule, finding.cells) == ("note", "generated-corruptions", own.ids)
    assert "CIFAR-10-C" in finding.text and finding.evidence == {"cells": 1, "images": 2}
    train = Cifar10Config(digest="d", root=None, split="train")
    assert not list(generated([official, view(train, "generated"), view(DigitsConfig(), "generated")], []))
