"""The probe flags purifiers with mistakes that nobody made on purpose, and none of sound ones of other kinds."""

from __future__ import annotations

import pytest
import torch
from loops import tiers
from planted import IMAGES, TEST_SET
from planted import probed_config as probed
from planted_accidents import ACCIDENTS, AccidentConfig
from sound_purifiers import SOUND, SoundConfig

from defense import Models
from defense.probe import probe_purifier
from defense.purifiers import BitDepthConfig, JPEGConfig, Purifier, PurifierConfig
from defense.randomness import Omega

FOUND = {
    "standardised for the classifier that does so itself": "range",
    "not mapped back from half units": "range",
    "mapped to [-1, 1] and clipped": "range",
    "standardised twice in batches": "batch",
    "negative": "range",
    "rows and columns exchanged": "range",
    "upside down": "range",
    "mirrored": "range",
    "one pixel off": "range",
    "divides by the contrast": "output",
    "dropout by its default": "global-randomness",
    "statistics of the batch in evaluation mode": "batch",
    "moving average in a list": "state",
    "trains for a moment": "state",
    "stops when all have converged": "batch",
    "sorted and not sorted back": "batch",
    "starts where the last image ended": "batch",
    "noise without its mean over the batch": "batch",
    "loss scale not taken back": "gradient",
    "NaN in gradients made zero": "gradient-elsewhere",
    "clipped by the norm of the batch": "gradient-elsewhere",
    "straight-through, halved": "gradient",
    "recomputed with other noise": "gradient",
    "a hook with every call": "state",
    "gradient of the last draw": "gradient",
    "network in half precision": "gradient",
    "copied input": "gradient",
    "clipped in place": "gradient",
    "away from the border": "gradient-elsewhere",
    "relu at the door": "gradient-elsewhere",
    "resized by numpy": "gradient",
    "smooth, and said to have no derivative": "gradient",
    "first noise kept": "stochastic",
    "kept by the first pixels": "gradient-elsewhere",
    "kept by the mean": "batch",
    "kept by image": "gradient-at-attack-scale",
    "kept by address": "batch",
    "hands out its buffer": "batch",
    "seeded by the bytes of the image": "continuity",
    "seeded by the bytes, strong": "continuity",
    "numpy draws the step": "global-randomness",
    "generator of its own": "same-randomness",
    "member by place in the batch": "batch",
    "member by image": "role",
    "member by draw": "role",
    "only far from the clean image": "continuity",
    "untouched where the classifier is sure": "continuity",
    "half looked up": "continuity",
    "a fifth looked up": "continuity",
    "rounded to eight bits in silence": "gradient",
}
"""Each mistake, and the check that is about it."""

UNSEEN = ("half recalled by attention",)
"""A memory without a jump, which docs/probe.md says that no probe sees."""

FIRST = {check: how for how, check in reversed(FOUND.items())}


def test_no_mistake_is_forgotten() -> None:
    assert set(ACCIDENTS) == {*FOUND, *UNSEEN}


@pytest.mark.parametrize("how", tiers(FOUND, fast=("member by image",), daily=FIRST.values()))
def test_a_mistake_is_flagged_by_its_check(how: str) -> None:
    found = probed(AccidentConfig(how=how))
    assert FOUND[how] in {check.name for check in found.failures}, str(found)


@pytest.mark.nightly
@pytest.mark.parametrize("how", UNSEEN)
def test_what_no_probe_sees(how: str) -> None:
    assert probed(AccidentConfig(how=how)).failures == ()


@pytest.mark.slow
@pytest.mark.parametrize(
    "how", tiers(SOUND, fast=(), daily=("calls forward itself", "largest pixels, cut off", "root"))
)
def test_sound_ones_fail_no_check(how: str) -> None:
    found = probed(SoundConfig(how=how))
    assert found.failures == (), str(found)


def test_a_jump_is_measured_against_the_change_between_two_images() -> None:
    """A step of 0.5 in all pixels, where two images differ by 0.8."""

    class Step(Purifier):
        def forward(self, x: torch.Tensor, omega: Omega) -> torch.Tensor:
            return 0.3 * x + 0.5 * (x.mean((1, 2, 3), keepdim=True) > 0.5)

    flat = torch.stack([torch.full((1, 8, 8), level) for level in (0.0, 1.0, 0.0, 1.0)])
    check = probe_purifier(Step(), flat).check("continuity")
    assert check.verdict == "fail" and check.measured == pytest.approx(0.5 / 0.8, abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["patched", "compiled"])
def test_a_network_with_a_forward_of_its_own_keeps_it(way: str) -> None:
    config = SoundConfig(how="calls forward itself")
    purifier, omega = config.build(), Omega.of("spec", 0, "judge", range(len(IMAGES)))
    network = purifier.net
    assert isinstance(network, torch.nn.Module)
    if way == "patched":
        before = network.forward
        network.forward = lambda x: before(x) + 1
    else:
        purifier.net = torch.compile(network, backend="eager")
    answer = purifier(IMAGES, omega)
    found = probe_purifier(purifier, IMAGES, config=config, models=Models(), reference=TEST_SET)
    assert found.check("evaluations").verdict == "pass"
    assert torch.equal(purifier(IMAGES, omega), answer)


def test_pixels_at_the_border_that_have_no_way_in() -> None:
    check = probed(AccidentConfig(how="away from the border")).check("gradient-elsewhere")
    assert check.measured == 1 and "zero at all pixels that are 0 or 1" in check.text


@pytest.mark.parametrize("config", [JPEGConfig(quality=60), BitDepthConfig(bits=3)], ids=lambda c: c.purifier)
def test_what_rounds_and_says_so_is_not_asked_for_jumps_or_slopes(config: PurifierConfig) -> None:
    found = probed(config)
    assert found.check("continuity").verdict == found.check("gradient").verdict == "not-applicable"


@pytest.mark.slow
def test_a_gradient_check_says_where_a_part_moves_in_steps() -> None:
    words = "it moves in steps, as what is rounded or computed in half precision does"
    assert words in probed(AccidentConfig(how="network in half precision")).check("gradient").text
    assert words not in probed(AccidentConfig(how="loss scale not taken back")).check("gradient").text


@pytest.mark.slow
def test_channels_in_the_order_of_another_library() -> None:
    """Blue comes out where red went in; a filter that keeps the order is as it was."""

    class Filter(Purifier):
        def __init__(self, reverse: bool) -> None:
            super().__init__()
            self.reverse = reverse

        def forward(self, x: torch.Tensor, omega: Omega) -> torch.Tensor:
            y = 0.8 * x + 0.2 * x.mean((2, 3), keepdim=True)
            return y.flip(1) if self.reverse else y

    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    wrong, right = (probe_purifier(Filter(reverse), images).check("range") for reverse in (True, False))
    assert wrong.verdict == "fail" and wrong.text == "the output is the input with channels reversed"
    assert right.verdict == "pass" and right.measured == 0
