r"""The contract of purifiers.

A purifier :math:`D(x;\omega)` is a function of its arguments, per image: the same randomness gives the same bits, in
any batch, with or without gradients, and nothing else is read or moved.
"""

from abc import abstractmethod

import torch
from torch import Tensor, nn

from defense.gradients import purify
from defense.models import Models
from defense.probe import Subject, claims, differences, purity
from defense.probe.claims import claims_of, counter_of
from defense.probe.run import in_double
from defense.probe.subject import snapshot
from defense.purifiers.base import Purifier, PurifierConfig
from defense.randomness import Omega
from puregrid.testing.demands import LabelledSpecContract, assert_frozen, hold

__all__ = ["PurifierContract"]


class PurifierContract(LabelledSpecContract):
    """The suite. Every method whose name starts with ``test_`` is one demand.

    Attributes:
        batch_tolerance: How much, in pixels of [0, 1], an image may differ between batches: convolutions round
            otherwise in batches of another size.
        gradient_tolerance: Relative difference of the exact gradient from plain autograd.
        calls: Calls after which the first answer must still be given.
        agreement: Least agreement of changes that the gradient predicts, and measured ones, over an attack's steps;
            None for the probe's. A function may be so rough that its true gradient says little.
        compared_images: Images whose gradient is compared with central differences.
    """

    batch_tolerance = 1e-4
    gradient_tolerance = 1e-4
    calls = 30
    agreement: float | None = None
    compared_images = 3

    @abstractmethod
    def config(self) -> PurifierConfig:
        """Return the config under test, resolved."""

    def images(self) -> Tensor:
        """At least three different images in [0, 1], shape (B, C, H, W)."""
        shape = self.config().image_shape or (3, 16, 16)
        return torch.rand(3, *shape, generator=torch.Generator().manual_seed(0))

    def protected(self) -> nn.Module | None:
        """Return the classifier that the defence protects, for purifiers that it guides."""
        return None

    def models(self) -> Models:
        """Return the networks that the purifier is built from."""
        return Models(self.protected())

    def _purifier(self) -> Purifier:
        return self.config().build(self.models())

    def _omega(self, count: int | None = None, draw: int = 0) -> Omega:
        ids = range(3, 3 + (len(self.images()) if count is None else count))
        return Omega.of(self.config().id, 0, "contract", ids, draw)

    def _subject(self) -> Subject:
        config = self.config()
        return Subject(
            config.label(),
            "purifier",
            self._purifier(),
            self.images(),
            claims_of(config),
            spec_id=config.id,
            build=self._purifier,
            count=counter_of(config, self.models()),
        )

    def test_output_is_finite_and_of_the_shape_and_dtype_of_the_images(self) -> None:
        """Images come out as they went in."""
        hold(claims.output(self._subject()))

    def test_output_is_in_the_units_of_the_images(self) -> None:
        """The classifier behind expects [0, 1] pixels."""
        hold(claims.value_range(self._subject()))

    def test_same_omega_gives_same_bits(self) -> None:
        """Twice from one purifier, and from one that was built anew."""
        hold(purity.same_randomness(self._subject()))

    def test_another_draw_differs_if_and_only_if_the_config_says_stochastic(self) -> None:
        """``stochastic`` decides how many draws are made; it must be true."""
        hold(purity.stochastic(self._subject()))

    def test_image_is_purified_alike_in_any_batch(self) -> None:
        """No reduction over the batch, no randomness by position."""
        hold(purity.batch(self._subject()), self.batch_tolerance)

    def test_global_random_states_have_no_influence_and_stay(self) -> None:
        """Random numbers come from omega alone."""
        hold(purity.global_randomness(self._subject()))

    def test_value_does_not_depend_on_whether_gradients_are_recorded(self) -> None:
        """Judgement runs without gradients, attacks with: they must see one defence."""
        hold(purity.gradient_recording(self._subject()))

    def test_answer_does_not_depend_on_who_asks(self) -> None:
        """Neither on labels of the randomness, whose numbers alone count, nor on the caller."""
        hold(purity.role(self._subject()))

    def test_calls_leave_no_state(self) -> None:
        """Attacks call often: what changes with the calls is another defence for them."""
        subject = self._subject()
        x, omega = subject.images, subject.omega()
        first, before = subject.value(x, omega).clone(), snapshot(subject.module)
        slope = purity.first_slope(subject)
        for draw in range(1, self.calls):
            subject.value(x[:1], subject.omega(1, draw))
        subject.gradient(x[:1], subject.omega(1), subject.weight(first))
        hold(purity.state(subject, first, slope, before))

    def test_gradient_is_that_of_central_differences(self) -> None:
        """In float64, at fixed randomness, and at the scale of an attack's steps; see :mod:`defense.probe`."""
        subject = self._subject()
        if purity.batch(subject).failed or purity.same_randomness(subject).failed:
            return  # no differences can be taken then, and those demands say so
        found = differences.measure(in_double(subject), self.compared_images, 3)
        hold(differences.gradient(found))
        hold(differences.gradient_at_attack_scale(found), self.agreement)
        hold(differences.elsewhere(found, subject))

    def test_exact_gradient_is_that_of_plain_autograd(self) -> None:
        """Segment checkpointing finds the states that were visited."""
        x, omega, purifier = self.images(), self._omega(), self._purifier()
        weight = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(x)

        def gradient(out: Tensor, leaf: Tensor) -> Tensor:
            assert out.requires_grad, "the output does not depend on the images by plain autograd"
            (actual,) = torch.autograd.grad((out * weight).sum(), leaf)
            return actual

        leaf = x.clone().requires_grad_()
        expected = gradient(purifier(leaf, omega), leaf)
        assert expected.isfinite().all(), "the gradient holds NaN or infinite values"
        for segment in (None, 1, 2):
            actual = gradient(purify(purifier, leaf, omega, segment=segment), leaf)
            apart = float((actual - expected).norm())
            assert apart <= self.gradient_tolerance * float(expected.norm()), (
                f"with segments of {segment or 'default'} steps the exact gradient differs from plain autograd by "
                f"{apart:.3g} of {float(expected.norm()):.3g}"
            )

    def test_networks_are_frozen_and_in_evaluation_mode(self) -> None:
        """Gradients are taken with respect to images alone, and no layer draws or learns."""
        assert_frozen(self._purifier(), "the purifier")

    def test_evaluations_are_those_that_are_made(self) -> None:
        """Costs in rows, plans and estimates come from ``evaluations``."""
        hold(claims.evaluations(self._subject()))
