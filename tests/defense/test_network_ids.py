"""Ids of networks never move by accident: they are inside the ids of every cell that uses them."""

from __future__ import annotations

from pathlib import Path

import pytest

from defense import ClassifierConfig, DiffusersConfig
from defense.denoisers import GuidedDiffusionConfig, OracleConfig, ScoreSDEConfig
from defense.purifiers import DiffPureConfig
from defense.spec import Spec

HASH = "0123456789abcdef" * 4
FOLDER = {"path": "x", "sha256": HASH, "config_sha256": HASH}
GUIDED = {"weights": "x", "preset": "cifar10_uncond_50M_500K", "sha256": HASH}
LINEAR = {"schedule": "linear-1000"}
CLIPPED = {**LINEAR, "clip_denoised": True}  # which was the default
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}

# As they were before folders stated their schedule and checkpoints had keys.
GOLDEN: list[tuple[Spec, str]] = [
    (DiffusersConfig(schedule="linear-1000", **FOLDER), "9e950638ad93f691"),
    (DiffusersConfig(schedule="cosine-4000", prediction="v", **FOLDER), "a85b5239314791ae"),
    (ScoreSDEConfig(weights="x", sha256=HASH), "a1f0141a7271c93e"),
    (GuidedDiffusionConfig.model_validate(GUIDED), "c707227255192c8c"),
    (OracleConfig(schedule="edm"), "914694e0e4b82e4d"),
    (ClassifierConfig(classifier="resnet20", weights="x", sha256=HASH, **IMAGENET), "0fe5c1c098900468"),
    (ClassifierConfig(classifier="digits-cnn").resolved(Path()), "f18162f4f8e539d7"),
    (DiffPureConfig(denoiser=DiffusersConfig(**LINEAR, **FOLDER), t_star=100, **CLIPPED), "f4aa3ee84d36d1c0"),
]  # fmt: skip


@pytest.mark.parametrize(("spec", "expected"), GOLDEN, ids=[f"{type(s).__name__} {i}" for s, i in GOLDEN])
def test_an_id_is_what_it_was(spec: Spec, expected: str) -> None:
    assert spec.id == expected
