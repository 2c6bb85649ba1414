"""The probe flags classifiers with mistakes that nobody made on purpose, and none of sound ones that look unusual."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from loops import tiers
from planted import TEST_SET
from planted_classifiers import HEADLESS, MISTAKES, SOUND, UNSEEN, Function, Transformer, digits_cnn
from safetensors.torch import save_file

from defense.classifiers import ClassifierConfig
from defense.probe import Probe, probe_classifier
from defense.probe.subject import largest_difference

IMAGES = TEST_SET[[0, 1, 2, 3, 5, 7, 11, 13]]

FOUND = {
    "energies with a large offset": "gradient-elsewhere",
    "small logits on a large offset": "gradient-elsewhere",
    "a mask hides the mean of the batch": "batch",
    "labels of test images": "continuity",
    "divided by a detached spread": "gradient",
    "statistics of the batch in evaluation mode": "batch",
    "dropout by its default": "global-randomness",
    "blind to borders": "gradient-elsewhere",
    "logit transform": "gradient-elsewhere",
    "divides by the contrast": "output",
    "divides by the brightness": "output",
    "counts votes": "continuity",
    "small gradients made zero": "gradient-elsewhere",
    "sorted and not sorted back": "batch",
}
"""Each mistake, and the check that is about it."""


def test_no_mistake_is_forgotten() -> None:
    assert set(MISTAKES) == set(FOUND)


@pytest.mark.parametrize("how", tiers(FOUND, fast=("blind to borders",), daily=("labels of test images",)))
def test_a_mistake_is_flagged_by_its_check(how: str) -> None:
    found = probe_classifier(Function(MISTAKES[how]), IMAGES)
    assert FOUND[how] in {check.name for check in found.failures}, str(found)


@pytest.mark.nightly
@pytest.mark.parametrize("how", UNSEEN)
def test_what_no_probe_sees(how: str) -> None:
    assert probe_classifier(Function(UNSEEN[how]), IMAGES).failures == ()


@pytest.mark.slow
@pytest.mark.parametrize("how", tiers(SOUND, fast=(), daily=("sigmoids", "a class that is masked")))
def test_sound_ones_fail_no_check(how: str) -> None:
    found = probe_classifier(Function(SOUND[how]), IMAGES)
    assert found.failures == (), str(found)


@pytest.mark.slow
def test_rounding_of_other_kernels_without_gradients_is_no_other_answer() -> None:
    found = probe_classifier(Transformer(), IMAGES)
    assert found.failures == (), str(found)


@pytest.mark.slow
def test_a_scripted_network_can_be_probed() -> None:
    found = probe_classifier(torch.jit.freeze(torch.jit.trace(digits_cnn(), IMAGES)), IMAGES)
    assert found.failures == (), str(found)


def test_a_network_with_weights_that_no_file_holds(tmp_path: Path) -> None:
    """Every process that builds it would judge another network."""
    save_file(HEADLESS.build().state_dict(), tmp_path / "body.safetensors")
    config = ClassifierConfig(classifier="planted_classifiers:HEADLESS", weights=str(tmp_path / "body.safetensors"))

    def probed() -> Probe:
        resolved = config.resolved(Path())
        return probe_classifier(resolved.build(), IMAGES, config=resolved)

    check = probed().check("same-randomness")
    assert check.verdict == "fail" and check.text == "a classifier built anew gave another output"


def test_differences_of_logits_are_relative_to_the_largest_above_the_median() -> None:
    """An offset of all logits, or a mask on one class, hides no difference."""
    logits = torch.tensor([[4.0, 0.0, 0.0, -1e6], [2.0, 1.0, 0.0, -1e6]], dtype=torch.float64)
    moved = logits + torch.tensor([0.0, 0.01, 0.0, 0.0])
    assert largest_difference(moved, logits, "classifier") == pytest.approx(0.01 / 4)
    assert largest_difference(moved + 1e5, logits + 1e5, "classifier") == pytest.approx(0.01 / 4)
