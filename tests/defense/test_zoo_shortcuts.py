"""The probe flags shortcuts that look harmless, and nothing of sound parts that look unusual."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from loops import tiers
from planted import IMAGES
from planted import probed_config as probed
from planted_classifiers import Function
from planted_shortcuts import CLASSES, SHORTCUTS, Shortcut, ShortcutConfig
from shortcut_classifiers import CLASSIFIERS
from sound_parts import SOUND, SOUND_CLASSIFIERS, SoundPartConfig

from defense.probe import probe_classifier, probe_purifier
from defense.probe.subject import LARGE, Subject

PURIFIERS = {how: check for how, (check, _) in [*SHORTCUTS.items(), *CLASSES.items()]}
FIRST = {check: how for how, check in reversed(PURIFIERS.items())}


@pytest.fixture(autouse=True)
def _settings() -> Iterator[None]:
    """Some shortcuts leave torch otherwise than they found it."""
    before = torch.get_default_dtype(), torch.get_num_threads(), torch.get_float32_matmul_precision()
    yield
    torch.set_default_dtype(before[0])
    torch.set_num_threads(before[1])
    torch.set_float32_matmul_precision(before[2])
    torch.set_grad_enabled(True)


@pytest.mark.parametrize("how", tiers(PURIFIERS, fast=("levels are another",), daily=FIRST.values()))
def test_a_shortcut_is_flagged_by_its_check(how: str) -> None:
    found = probed(ShortcutConfig(how=how))
    assert PURIFIERS[how] in {check.name for check in found.failures}, str(found)


@pytest.mark.slow
@pytest.mark.parametrize("how", tiers(CLASSIFIERS, fast=(), daily=("offset of its first batch", "labels by digest")))
def test_a_shortcut_of_a_classifier_is_flagged_by_its_check(how: str) -> None:
    check, made = CLASSIFIERS[how]
    found = probe_classifier(Function(made), IMAGES)
    assert check in {failed.name for failed in found.failures}, str(found)


@pytest.mark.slow
@pytest.mark.parametrize("how", tiers(SOUND, fast=(), daily=("range asserted", "by view")))
def test_sound_ones_fail_no_check(how: str) -> None:
    found = probed(SoundPartConfig(how=how))
    assert found.failures == (), str(found)


@pytest.mark.slow
@pytest.mark.parametrize(
    "how",
    tiers(SOUND_CLASSIFIERS, fast=(), daily=("largest subtracted, detached", "logarithm of clipped probabilities")),
)
def test_sound_classifiers_fail_no_check(how: str) -> None:
    found = probe_classifier(Function(SOUND_CLASSIFIERS[how]), IMAGES)
    assert found.failures == (), str(found)


@pytest.mark.slow
def test_a_module_without_a_config_is_asked_about_another_first_image_too() -> None:
    check = probe_purifier(Shortcut("scaled by its first batch"), IMAGES).check("state")
    assert check.verdict == "fail" and check.text == "a purifier whose first image was another has other answers"


def test_a_large_batch_is_no_multiple_of_a_chunk_and_has_the_images_in_no_order() -> None:
    subject = Subject("p", "purifier", Shortcut("warms up"), IMAGES[:4])
    chosen, images, omega = subject.crowd(IMAGES[:4], subject.omega())
    assert all(LARGE % chunk for chunk in range(2, LARGE))
    assert torch.equal(images, IMAGES[chosen]) and omega.image_ids == tuple(3 + k for k in chosen.tolist())
    assert all(not torch.equal(chosen[:k], chosen[k : 2 * k]) for k in (4, 8, 16))


@pytest.mark.parametrize("classes", [1, 2, 10])
def test_weights_of_logits_know_no_offset(classes: int) -> None:
    """One logit alone has no other to be compared with."""
    subject = Subject("c", "classifier", torch.nn.Identity(), IMAGES)
    total = float(subject.weight(torch.zeros(8, classes, dtype=torch.float64)).sum())
    assert abs(total) > 0.1 if classes == 1 else abs(total) < 1e-12
