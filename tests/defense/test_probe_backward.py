"""The probe flags backward passes that fit its own questions, exemptions, and what waits for calls or batches."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from loops import tiers
from planted import probed_config as probed
from planted_backward import BackwardConfig

from defense.purifiers import BitDepthConfig, JPEGConfig, MedianConfig, PurifierConfig

FAULTS = {
    "clipped backward": "gradient-elsewhere",
    "small gradients underflow": "gradient-elsewhere",
    "only what is positive goes back": "gradient-elsewhere",
    "normalised backward": "gradient-elsewhere",
    "half of the pixels go back": "gradient",
    "blurred backward": "gradient",
    "mirrored backward": "gradient",
    "tired backward": "state",
    "large batches": "batch",
    "large batches detached": "gradient-elsewhere",
    "clean images exempt": "test-set-memory",
    "clean images in a bypass": "test-set-memory",
    "detached off the test images": "gradient",
    "detached at the range": "gradient-elsewhere",
    "noise by content": "gradient",
    "abstains when noisy": "gradient-at-attack-scale",
    "in another thread": "role",
    "slower and slower": "same-randomness",
    "largest batch so far": "state",
    "three draws in all": "role",
    "eight bits": "gradient-at-attack-scale",
    "a leaf is detached": "gradient",
}
"""Each fault, and the check that is about it."""


FIRST = {check: fault for fault, check in reversed(FAULTS.items())}
"""By check its first fault; by day one of each is enough."""


@pytest.mark.parametrize("fault", tiers(FAULTS, daily=FIRST.values()))
def test_a_planted_fault_is_flagged_by_its_check(fault: str) -> None:
    found = probed(BackwardConfig(fault=fault))
    assert FAULTS[fault] in {check.name for check in found.failures}, str(found)


@pytest.mark.slow
def test_a_gradient_that_is_wrong_where_most_pixels_are_black_or_white() -> None:
    check = probed(BackwardConfig(fault="detached at the range")).check("gradient-elsewhere")
    assert check.measured == pytest.approx(0.9, abs=1e-6)  # nine tenths of it are detached there
    assert "where most pixels are 0 or 1" in check.text


@pytest.mark.slow
def test_a_probe_in_a_workers_thread_asks_as_the_main_one_too() -> None:
    main = threading.main_thread()
    with ThreadPoolExecutor(1) as worker:
        found = worker.submit(probed, BackwardConfig(fault="in another thread")).result()
    assert [check.name for check in found.failures] == ["role"]
    assert found.check("role").text == "another answer: the main thread"
    assert threading.main_thread() is main


@pytest.mark.parametrize(
    "config",
    [MedianConfig(size=3), JPEGConfig(quality=60), BitDepthConfig(bits=3)],
    ids=lambda config: config.purifier,
)
def test_sound_ones_that_sort_or_round_fail_no_check(config: PurifierConfig) -> None:
    assert probed(config).failures == (), str(probed(config))
