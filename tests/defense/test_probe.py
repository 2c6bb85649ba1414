"""The probe flags each planted fault by the check that is about it, and none of a sound defence."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from loops import tiers
from planted import IMAGES, TEST_SET, Faulty, Net, PlantedConfig, probed_config
from torch import nn

from defense import Models, Omega
from defense.errors import InvalidInput
from defense.probe import DEMANDS, Probe, probe_classifier, probe_purifier
from defense.purifiers import BitDepthConfig, GaussianNoiseConfig, JPEGConfig, MedianConfig, NoPurifierConfig
from defense.randomness import relabelled


def probed(fault: str = "", **says: object) -> Probe:
    return probed_config(PlantedConfig(fault=fault, **says))  # type: ignore[arg-type]


PURIFIERS = {
    "start detached": "gradient",
    "step detached": "gradient",
    "guidance detached": "gradient",
    "residual detached": "gradient",
    "weights of the data": "gradient",
    "negated gradient": "gradient",
    "gradient in noise": "gradient",
    "gradient of a sign": "gradient",
    "halved gradient": "gradient",
    "gradient is NaN": "gradient",
    "rounding, straight-through": "gradient",
    "waves": "gradient-at-attack-scale",
    "rounding": "gradient-at-attack-scale",
    "threshold": "gradient-at-attack-scale",
    "sign": "gradient-at-attack-scale",
    "saturated": "gradient-at-attack-scale",
    "constant": "gradient-at-attack-scale",
    "look-up": "test-set-memory",
    "look-up near test images": "test-set-memory",
    "pulled to the test set": "test-set-memory",
    "nothing with gradients": "gradient-recording",
    "more if a gradient is wanted": "gradient-recording",
    "otherwise in inference mode": "gradient-recording",
    "more than its chain": "gradient-recording",
    "knows the judge": "role",
    "knows attacks": "role",
    "knows its spec": "role",
    "knows the seed": "role",
    "knows late draws": "role",
    "knows images": "role",
    "looks up who calls": "role",
    "looks for attack libraries": "role",
    "detached for attackers": "role",
    "training flag": "role",
    "alone": "batch",
    "mean of the batch": "batch",
    "noise by position": "batch",
    "copies noticed": "batch",
    "raises alone": "batch",
    "double is another": "gradient-elsewhere",
    "float detached": "gradient-elsewhere",
    "batch of five detached": "gradient-elsewhere",
    "alone detached": "gradient-elsewhere",
    "tired": "state",
    "running mean": "state",
    "first call": "state",
    "every other call": "same-randomness",
    "own generator": "same-randomness",
    "global randn": "global-randomness",
    "global numpy": "global-randomness",
    "hidden seed": "global-randomness",
    "global noise in a step": "global-randomness",
    "minus one to one": "range",
    "bytes": "range",
    "NaN": "output",
    "cropped": "output",
    "double out": "output",
    "in place": "output",
    "trainable": "frozen",
    "training mode": "frozen",
    "no noise": "stochastic",
}
"""Each fault of a purifier, and the check that is about it."""


def tiered(table: dict[str, str]) -> list[Any]:
    """The faults of a table: of each check the first is daily, the others are nightly, and one of all is fast."""
    first = {check: fault for fault, check in reversed(table.items())}
    return tiers(table, fast=list(table)[:1], daily=first.values())


@pytest.mark.slow
@pytest.mark.parametrize("fault", tiered(PURIFIERS))
def test_a_planted_fault_is_flagged_by_its_check(fault: str) -> None:
    found = probed(fault)
    failed = {check.name for check in found.failures}
    assert PURIFIERS[fault] in failed, str(found)
    assert all(check.text for check in found.failures)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("says", "check"), [({"says_stochastic": False}, "stochastic"), ({"says_evaluations": 5}, "evaluations")]
)
def test_what_it_says_of_itself_is_held_against_what_was_seen(says: dict[str, object], check: str) -> None:
    assert [failure.name for failure in probed(**says).failures] == [check]


CLASSIFIERS = {
    "rounds its input": "gradient-at-attack-scale",
    "rounded logits": "gradient-at-attack-scale",
    "detached features": "gradient",
    "negated": "gradient",
    "huge logits": "loss-gradient",
    "softmax": "output",
    "noise": "global-randomness",
    "judge": "gradient-recording",
    "caller": "role",
    "tired": "state",
    "batch statistics": "frozen",
}


@pytest.mark.parametrize("fault", CLASSIFIERS)
def test_a_planted_fault_of_a_classifier_is_flagged_by_its_check(fault: str) -> None:
    found = probe_classifier(Net(fault), IMAGES)
    assert CLASSIFIERS[fault] in {check.name for check in found.failures}, str(found)


@pytest.mark.slow
def test_sound_parts_fail_no_check() -> None:
    assert probed().failures == ()
    assert probe_classifier(Net(), IMAGES).failures == ()
    assert {check.name for check in probed().checks} == set(DEMANDS)


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [
        NoPurifierConfig(),
        JPEGConfig(quality=60),
        BitDepthConfig(bits=3),
        BitDepthConfig(bits=4),
        MedianConfig(),
        GaussianNoiseConfig(sigma=0.25),
        GaussianNoiseConfig(sigma=1.0),
    ],
    ids=lambda config: config.label(),
)
def test_filters_that_ship_fail_no_check(config: JPEGConfig) -> None:
    found = probe_purifier(config.build(), IMAGES, config=config, models=Models(), reference=TEST_SET)
    assert found.failures == (), str(found)


@pytest.mark.slow
def test_a_kink_is_no_lie_and_a_small_lie_is_found() -> None:
    class Kinked(Faulty):
        def forward(self, x: torch.Tensor, omega: Omega) -> torch.Tensor:
            return (x + 0.1 * omega.normal("forward", 0, x)).clamp(0, 1).abs().relu()

    class Slightly(Kinked):
        def forward(self, x: torch.Tensor, omega: Omega) -> torch.Tensor:
            y = super().forward(x, omega)
            return 0.97 * y + 0.03 * y.detach()

    assert probe_purifier(Kinked(), IMAGES).check("gradient").verdict == "pass"
    slight = probe_purifier(Slightly(), IMAGES)
    assert slight.check("gradient").verdict == "fail"
    (exact,) = [row for row in slight.gradients if row.mode == "exact"]
    assert exact.error == pytest.approx(0.03, abs=0.005) and exact.share > 0.9


@pytest.mark.slow
def test_modes_that_leave_something_out_are_measured_and_not_blamed() -> None:
    found = probed()
    by_mode = {row.mode: row for row in found.gradients}
    assert by_mode["exact"].error < 1e-7 and by_mode["exact"].share == 0 and by_mode["exact"].exact
    assert by_mode["exact-no-guidance-path"].error > 0.1 and not by_mode["exact-no-guidance-path"].exact
    assert by_mode["bpda"].share == by_mode["blind"].share == 1
    assert by_mode["bpda"].cosine is not None and 0.3 < by_mode["bpda"].cosine < 1


@pytest.mark.slow
def test_the_mechanism_in_numbers() -> None:
    noise = GaussianNoiseConfig(sigma=0.25)
    numbers = {n.name: n.value for n in probe_purifier(noise.build(), IMAGES, config=noise).mechanism}
    # x + n: every gradient is the cotangent itself, and every frequency of a change survives.
    for name in ("gradient-cosine", "contraction", "survival-low", "survival-middle", "survival-high"):
        assert numbers[name] == pytest.approx(1, abs=1e-5), name
    # Two draws differ by sqrt(2) sigma in every pixel, a change of 8/255 by that.
    assert numbers["noise-to-signal"] == pytest.approx(math.sqrt(2) * 0.25 / (8 / 255), rel=0.1)

    class Mixed(Faulty):
        def forward(self, x: torch.Tensor, omega: Omega) -> torch.Tensor:
            return x * omega.normal("mask", 0, x).sign()

    mixed = {n.name: n.value for n in probe_purifier(Mixed(), IMAGES).mechanism}
    assert mixed["gradient-cosine"] == pytest.approx(0, abs=0.15)


@pytest.mark.slow
def test_numbers_travel_as_json_and_text() -> None:
    found = probed("rounding")
    read = json.loads(json.dumps(found.to_json()))
    assert read["passed"] is False and {check["name"] for check in read["checks"]} == set(DEMANDS)
    json.dumps(probed("NaN").to_json(), allow_nan=False)  # which JSON has no word for
    text = str(found)
    assert "FAIL  purifier    gradient-at-attack-scale" in text
    assert DEMANDS["gradient-at-attack-scale"].action in text


def test_the_page_has_the_checks_of_the_code() -> None:
    from scripts.probe_page import PAGE, checks, replaced

    page = PAGE.read_text()
    assert checks() in page
    assert replaced(page, {"checks": checks()}) == page


def test_too_few_images_are_refused() -> None:
    with pytest.raises(InvalidInput, match=r"at least two images of shape \(N, C, H, W\), not \(1, 1, 8, 8\)"):
        probe_classifier(Net(), IMAGES[:1])


def test_relabelled_randomness_has_other_labels_and_the_same_numbers() -> None:
    like = torch.empty(2, 5)
    omega = Omega.of("a", 1, "attack", [3, 4], [0, 2]).within("eot")
    plain = omega.within("0").normal("forward", 3, like)
    with relabelled(omega, offset=1000, role="judge", seed=7, spec_id="b") as shown:
        assert (shown.role, shown.seed, shown.image_ids, shown.draws) == ("judge", 7, (1003, 1004), (1000, 1002))
        assert torch.equal(shown.within("0").normal("forward", 3, like), plain)
        anew = Omega.of(shown.spec_id, shown.seed, "judge/0", shown.image_ids, shown.draws)
        assert torch.equal(anew.normal("forward", 3, like), plain)
        assert torch.equal(shown.select([1]).within("0").normal("forward", 3, like[:1]), plain[1:])
        assert torch.equal(shown.shared().uniform("u", 0, like), omega.shared().uniform("u", 0, like))
    assert not torch.equal(shown.within("0").normal("forward", 3, like), plain)  # the block has ended


def test_a_part_that_writes_into_its_input_changes_no_images_of_its_probe() -> None:
    images = IMAGES.clone()
    config = PlantedConfig(fault="in place")
    found = probe_purifier(config.build(), images, config=config, models=Models(), reference=TEST_SET)
    assert torch.equal(images, IMAGES)
    assert "changed its input in place" in found.check("output").text


class Refused(nn.Module):
    """Is refused memory in one of its calls, as PyTorch's allocator for processors says it, or NumPy's."""

    def __init__(self, inner: nn.Module, at: int, error: Exception) -> None:
        super().__init__()
        self.inner, self.at, self.error, self.calls = inner, at, error, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if self.calls == self.at:
            raise self.error
        answer: torch.Tensor = self.inner(x)
        return answer


@pytest.mark.slow
@pytest.mark.parametrize(
    "error",
    [RuntimeError("DefaultCPUAllocator: can't allocate memory"), MemoryError()],
    ids=lambda e: type(e).__name__,
)
def test_memory_that_ends_is_the_machines_trouble_and_no_finding(error: Exception) -> None:
    """Whichever check asks for it: the rows of a probe would say for ever that the part raises."""
    whole = Refused(Net(), 0, error).eval()
    assert probe_classifier(whole, IMAGES).failures == ()
    assert whole.calls > 20
    for at in (1, 2, *range(3, whole.calls, whole.calls // 8), whole.calls):
        with pytest.raises(type(error)):
            probe_classifier(Refused(Net(), at, error).eval(), IMAGES)
