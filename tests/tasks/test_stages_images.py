"""Corrupted images and image quality as stages."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.lib import format as npy

import tasks.corruptions.config as corruption_config
from defense import ClassifierConfig, DiffPureConfig, DiffusersConfig, InvalidInput, NoPurifierConfig, Omega
from defense.models import Models
from defense.purifiers.distribution_transfer import DistributionTransferConfig
from tasks.cifar_c import CIFAR10_C
from tasks.compute import Compute, Context
from tasks.corruptions import corrupt
from tasks.corruptions.config import CorruptionConfig
from tasks.datasets import DatasetConfig, ImageSet
from tasks.stages import Chunk, CorruptStage, EvaluateStage, QualityStage, images_from_table
from tasks.stages.quality import QualityConfig

IDS = (4, 17, 598)
CHUNK = Chunk(IDS)


def noisy(digits: DatasetConfig, severity: int = 5) -> CorruptStage:
    config = CorruptionConfig(corruption="gaussian_noise", severity=severity)
    return CorruptStage(dataset=digits, corruption=config, seed=3)


def test_corrupted_images_are_those_of_the_definition_whatever_the_chunk(
    digits: DatasetConfig, context: Context
) -> None:
    stage, data = noisy(digits), digits.load()
    output = stage.run(CHUNK, {}, context)
    assert output.images is not None
    found = images_from_table(output.images, IDS)
    omega = Omega.of("corruption", 3, "corrupt", IDS)
    expected = corrupt(data.images[list(IDS)], "gaussian_noise", 5, omega).images
    assert (found == expected).all()
    alone = stage.run(Chunk((598,)), {}, context).images
    assert alone is not None and (images_from_table(alone, (598,))[0] == found[2]).all()
    moved = found.astype(np.float64) - data.images[list(IDS)]
    rows = output.rows.to_pydict()
    assert rows["l2"] == pytest.approx(np.sqrt((moved**2).sum((1, 2, 3))), rel=1e-6)
    assert rows["linf"] == pytest.approx(np.abs(moved).max((1, 2, 3)), rel=1e-6)
    assert set(rows["origin"]) == {"generated"}


def test_what_determines_corrupted_images_is_in_the_id(digits: DatasetConfig) -> None:
    stage = noisy(digits)
    others = [
        noisy(digits, 4),
        stage.model_copy(update={"seed": 4}),
        stage.model_copy(update={"corruption": CorruptionConfig(corruption="shot_noise", severity=5)}),
        stage.model_copy(update={"dataset": digits.model_copy(update={"digest": "0" * 64})}),
    ]
    assert len({stage.id, *(other.id for other in others)}) == 5


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"corruption": "gausian_noise", "severity": 1}, "gaussian_noise"),
        ({"corruption": "fog", "severity": 6}, "from 1 to 5"),
        ({"corruption": "frost", "severity": 1}, "photographs are missing"),
        ({"corruption": "fog", "severity": 1, "photographs": "x"}, "takes none"),
        ({"corruption": "fog", "severity": 1, "path": "x"}, "official"),
    ],
)
def test_wrong_corruptions_are_refused(fields: dict[str, object], why: str) -> None:
    with pytest.raises(InvalidInput, match=why):
        CorruptionConfig.model_validate(fields)


IMAGES = np.random.default_rng(0).random((4, 3, 32, 32)).astype(np.float32)


class _Tiny(DatasetConfig):
    """Four images under the name of CIFAR-10."""

    dataset: str = "cifar10"

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return 3, 32, 32

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple("abcdefghij")

    def read(self) -> ImageSet:
        return ImageSet(IMAGES, np.array([3, 1, 4, 1]))


@pytest.fixture
def release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in the official layout with four images per severity."""
    import hashlib
    from dataclasses import replace

    rng = np.random.default_rng(0)
    fog = rng.integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    npy.open_memmap(tmp_path / "fog.npy", "w+", np.uint8, fog.shape)[:] = fog
    np.save(tmp_path / "labels.npy", np.tile(np.array([3, 1, 4, 1], np.uint8), 5))
    md5 = {name: hashlib.md5((tmp_path / f"{name}.npy").read_bytes()).hexdigest() for name in ("fog", "labels")}
    small = replace(CIFAR10_C, files=md5, images=4)
    monkeypatch.setattr(corruption_config, "_RELEASES", {"cifar10": small})
    return tmp_path


def test_official_arrays_are_read_severity_major(release: Path, context: Context) -> None:
    data = _Tiny().resolved(Path())
    config = CorruptionConfig(corruption="fog", severity=3, origin="official", path=str(release))
    resolved = config.resolved(Path()).of(data)
    assert resolved.digest is not None and len(resolved.digest) == 32
    output = CorruptStage(dataset=data, corruption=resolved, seed=0).run(Chunk((2, 0)), {}, context)
    assert output.images is not None
    found = images_from_table(output.images, (2, 0))
    fog = np.load(release / "fog.npy")
    assert (found == fog[[10, 8]].transpose(0, 3, 1, 2) / np.float32(255)).all()
    assert output.rows["origin"].to_pylist() == ["official"] * 2
    elsewhere = config.model_copy(update={"path": str(release.parent)})
    assert resolved.id != elsewhere.id and resolved.model_copy(update={"path": "other"}).id == resolved.id


def test_official_arrays_that_are_not_those_are_refused_before_any_compute(
    release: Path, digits: DatasetConfig
) -> None:
    config = CorruptionConfig(corruption="fog", severity=3, origin="official", path=str(release))
    with pytest.raises(InvalidInput, match="not of digits"):
        config.resolved(Path()).of(digits)
    swapped = np.load(release / "fog.npy")[::-1]  # severities in the other order
    np.save(release / "fog.npy", swapped)
    with pytest.raises(InvalidInput, match="has md5"):
        config.resolved(Path()).of(_Tiny().resolved(Path()))


def test_images_in_another_order_are_refused(release: Path, context: Context) -> None:
    class Other(_Tiny):
        def read(self) -> ImageSet:
            return ImageSet(IMAGES, np.array([1, 3, 4, 1]))

    data = Other().resolved(Path())
    config = CorruptionConfig(corruption="fog", severity=3, origin="official", path=str(release))
    stage = CorruptStage(dataset=data, corruption=config.resolved(Path()).of(data), seed=0)
    with pytest.raises(InvalidInput, match="in another order"):
        stage.run(Chunk((0, 1)), {}, context)


def test_judgement_of_corrupted_images_is_that_of_the_classifier(
    digits: DatasetConfig, cnn: ClassifierConfig, context: Context
) -> None:
    source = noisy(digits)
    made = source.run(CHUNK, {}, context)
    assert made.images is not None
    stage = EvaluateStage(
        dataset=digits,
        source=source,
        classifier=cnn,
        purifier=NoPurifierConfig(),
        draws=1,
        seed=3,
        compute=Compute(batch=2),
    )
    rows = stage.run(CHUNK, {"source": made.images}, context).rows
    with torch.no_grad():
        expected = cnn.build()(torch.from_numpy(images_from_table(made.images, IDS))).argmax(1)
    assert [each[0] for each in rows["prediction"].to_pylist()] == expected.tolist()
    assert stage.inputs() == {"source": source}


def quality_stage(digits: DatasetConfig, source: CorruptStage | None, **fields: object) -> QualityStage:
    given = {"classifier": None, "purifier": NoPurifierConfig(), "quality": QualityConfig(), "seed": 3}
    return QualityStage.model_validate(
        {"dataset": digits, "source": source, "compute": Compute(batch=2), **given, **fields}
    )


def test_quality_of_noise_is_its_mean_square(digits: DatasetConfig, context: Context) -> None:
    source = noisy(digits)
    made = source.run(CHUNK, {}, context)
    assert made.images is not None
    output = quality_stage(digits, source).run(CHUNK, {"source": made.images}, context)
    rows = output.rows.to_pydict()
    for i, moved in enumerate(made.rows["l2"].to_pylist()):
        assert rows["psnr_input"][i] == pytest.approx(-10 * math.log10(moved**2 / 64), abs=1e-4)
    assert rows["psnr_output"] == rows["psnr_input"] and rows["psnr_change"] == [math.inf] * 3
    assert rows["ssim_change"] == pytest.approx([1.0] * 3) and max(rows["ssim_input"]) < 1
    assert rows["lpips_input"] == [None] * 3
    assert "puregrid data fetch lpips" in output.missing["lpips"]


def test_quality_is_of_the_images_that_are_judged_as_draw_0(
    digits: DatasetConfig, denoiser: DiffusersConfig, context: Context
) -> None:
    purifier = DiffPureConfig(denoiser=denoiser, schedule="linear-1000", t_star=60, steps=2)
    output = quality_stage(digits, None, purifier=purifier).run(CHUNK, {}, context)
    x = torch.from_numpy(digits.load().images[list(IDS)])
    with torch.no_grad():
        omega = Omega.of(purifier.id, 3, "judge", IDS, 0)
        expected = purifier.build(Models())(x, omega).clamp(0, 1).numpy()
    assert output.images is not None
    assert np.abs(images_from_table(output.images, IDS) - expected).max() < 1e-5
    mse = ((expected - x.numpy()).astype(np.float64) ** 2).mean((1, 2, 3))
    rows = output.rows.to_pydict()
    assert rows["psnr_output"] == pytest.approx((-10 * np.log10(mse)).tolist(), abs=1e-3)
    assert rows["psnr_input"] == [math.inf] * 3 and rows["psnr_change"] == rows["psnr_output"]
    assert rows["denoiser_evaluations"] == [2] * 3


def test_purifiers_that_the_classifier_guides_are_measured_with_it(
    digits: DatasetConfig, cnn: ClassifierConfig, denoiser: DiffusersConfig, context: Context
) -> None:
    purifier = DistributionTransferConfig.model_validate(
        {"denoiser": denoiser, "schedule": "linear-1000", "t_star": 40, "steps": 2}
    )
    assert purifier.uses_classifier
    stage = quality_stage(digits, None, purifier=purifier, classifier=cnn)
    rows = stage.run(CHUNK, {}, context).rows.to_pydict()
    assert all(0 < value < 60 for value in rows["psnr_output"])
    assert stage.id != quality_stage(digits, None, purifier=purifier).id
