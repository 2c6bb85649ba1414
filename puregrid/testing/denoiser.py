r"""The contract of denoisers.

A denoiser predicts the noise :math:`\epsilon` in

.. math:: z = \sqrt{\bar\alpha_t}\,z_0 + \sqrt{1-\bar\alpha_t}\,\epsilon

on the schedule that it declares, whatever its network was trained to predict: a frozen function, per image, of z and
t.
"""

import copy
from abc import abstractmethod
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from defense.denoisers import Denoiser, DenoiserConfig
from defense.randomness import Omega
from defense.schedules import get_schedule
from puregrid.testing.demands import SpecContract, assert_frozen, assert_gradient, under_global_seeds

__all__ = ["DenoiserContract"]


class DenoiserContract(SpecContract):
    """The suite. Every method whose name starts with ``test_`` is one demand.

    Attributes:
        batch_tolerance: How much a prediction may differ between batches: convolutions round otherwise in batches of
            another size.
        gradient_tolerance: Relative difference of the gradient from central differences, in float64.
        error_at_most: Largest mean squared error of the noise at any level that is looked at, whose variance is 1. A
            prediction of no noise at all has 1.
    """

    batch_tolerance: ClassVar[float] = 1e-4
    gradient_tolerance: ClassVar[float] = 1e-3
    error_at_most: ClassVar[float] = 1.0

    @abstractmethod
    def config(self) -> DenoiserConfig:
        """Return the config under test, resolved."""

    @abstractmethod
    def images(self) -> Tensor:
        """At least three different images of the denoiser's data in [-1, 1], shape (B, C, H, W)."""

    def levels(self) -> tuple[int, ...]:
        """Levels t that are looked at: where 0.98, 0.9, 0.5 and 0.1 of the image's variance is left, and the last."""
        abar = get_schedule(self.config().schedule).abar
        return (*(int(np.argmax(abar <= share)) for share in (0.98, 0.9, 0.5, 0.1)), len(abar) - 1)

    def _denoiser(self) -> Denoiser:
        return self.config().build()

    def _noised(self, t: int) -> tuple[Tensor, Tensor, Tensor]:
        """Images, noise, and the noised images at a level."""
        z0, abar = self.images(), float(get_schedule(self.config().schedule).abar[t])
        noise = Omega.of("contract", 0, "contract", range(len(z0))).normal("noise", t, z0)
        return z0, noise, abar**0.5 * z0 + (1 - abar) ** 0.5 * noise

    def test_prediction_is_finite_and_of_the_shape_and_dtype_of_the_images(self) -> None:
        """At every level, the first and the last included."""
        denoiser = self._denoiser()
        for t in (1, *self.levels()):
            _, _, z = self._noised(t)
            before = z.clone()
            with torch.no_grad():
                out = denoiser(z, t)
            assert torch.equal(z, before), "the denoiser changed its input in place"
            assert out.shape == z.shape, f"at t = {t} images of shape {tuple(z.shape)} became {tuple(out.shape)}"
            assert out.dtype == z.dtype, f"at t = {t} images of {z.dtype} became {out.dtype}"
            assert out.isfinite().all(), f"at t = {t} the prediction holds NaN or infinite values"

    def test_same_images_give_same_bits(self) -> None:
        """Twice, another level in between, and from a network that was built anew."""
        denoiser, t = self._denoiser(), self.levels()[2]
        _, _, z = self._noised(t)
        with torch.no_grad():
            first = denoiser(z, t)
            denoiser(z, 1)
            assert torch.equal(denoiser(z, t), first), "after another level the same images have another prediction"
            assert torch.equal(self._denoiser()(z, t), first), "a denoiser built anew gave another prediction"

    def test_image_is_denoised_alike_in_any_batch(self) -> None:
        """No reduction over the batch."""
        denoiser, t = self._denoiser(), self.levels()[2]
        _, _, z = self._noised(t)
        last = len(z) - 1
        with torch.no_grad():
            whole = denoiser(z, t)
            alone = denoiser(z[last:], t)
            turned = denoiser(z.flip(0), t).flip(0)
        for out, expected, how in ((alone, whole[last:], "alone"), (turned, whole, "in another order")):
            worst = float((out - expected).abs().max())
            assert worst <= self.batch_tolerance, f"{how} the prediction for an image differs by {worst:.3g}"

    def test_global_random_states_have_no_influence_and_stay(self) -> None:
        """A denoiser draws nothing: what is random is the purifier around it."""
        denoiser, t = self._denoiser(), self.levels()[2]
        _, _, z = self._noised(t)

        def compute() -> Tensor:
            leaf = z.clone().requires_grad_()
            out: Tensor = denoiser(leaf, t)
            if out.requires_grad:
                torch.autograd.grad(out.sum(), leaf)
            return out.detach()

        assert torch.equal(*under_global_seeds(compute, "the denoiser")), "a global seed changed the prediction"

    def test_value_does_not_depend_on_whether_gradients_are_recorded(self) -> None:
        """Exact gradients walk back through states that were visited without them."""
        denoiser, t = self._denoiser(), self.levels()[2]
        _, _, z = self._noised(t)
        with torch.no_grad():
            plain = denoiser(z, t)
        recorded = denoiser(z.clone().requires_grad_(), t).detach()
        worst = float((recorded - plain).abs().max())
        assert torch.equal(recorded, plain), f"with gradients recorded the prediction differs by {worst:.3g}"

    def test_gradient_is_that_of_central_differences(self) -> None:
        """In float64, of a random projection of the prediction for one image."""
        denoiser, t = copy.deepcopy(self._denoiser()).double(), self.levels()[2]
        z = self._noised(t)[2][:1].double()
        weight = torch.randn(z.shape, generator=torch.Generator().manual_seed(1), dtype=z.dtype)

        def projection(at: Tensor) -> Tensor:
            value: Tensor = (denoiser(at, t) * weight).sum()
            return value

        assert_gradient(projection, z, self.gradient_tolerance)

    def test_network_is_frozen_and_in_evaluation_mode(self) -> None:
        """Gradients are taken with respect to images alone, and no layer draws or learns."""
        assert_frozen(self._denoiser(), "the denoiser")

    def test_schedule_is_the_declared_one_and_falls_from_1(self) -> None:
        """A t means nothing without its schedule; rows carry the name that the config gives."""
        config = self.config()
        declared, schedule = get_schedule(config.schedule), self._denoiser().schedule
        assert schedule.name == declared.name and np.array_equal(schedule.abar, declared.abar), (
            f"the denoiser is on schedule {schedule.name!r}, the config says {config.schedule!r}"
        )
        abar = schedule.abar
        falls = abar[0] == 1 and abar[-1] > 0 and bool((np.diff(abar) < 0).all())
        assert falls, f"abar of schedule {schedule.name!r} does not fall strictly from 1 to above 0"

    def test_image_shape_is_the_declared_one(self) -> None:
        """Sweep files are checked by it before any compute."""
        declared, of_denoiser = self.config().image_shape, self._denoiser().image_shape
        assert declared in (of_denoiser, None), f"config.image_shape is {declared}, the denoiser's {of_denoiser}"
        in_suite = tuple(self.images().shape[1:])
        assert of_denoiser in (in_suite, None), (
            f"the denoiser takes images of shape {of_denoiser}, the suite has {in_suite}"
        )

    def test_level_is_told_to_the_network(self) -> None:
        """The same image at another level holds another noise."""
        denoiser, levels = self._denoiser(), self.levels()
        _, _, z = self._noised(levels[2])
        with torch.no_grad():
            same = torch.equal(denoiser(z, levels[2]), denoiser(z, levels[0]))
        assert not same, f"the prediction is the same at t = {levels[2]} and at t = {levels[0]}"

    def test_prediction_is_the_noise_and_not_the_image_or_the_velocity(self) -> None:
        r"""What was trained to predict :math:`z_0` or v is converted; of the three, the noise is nearest."""
        denoiser = self._denoiser()
        for t in self.levels()[2:4]:
            z0, noise, z = self._noised(t)
            abar = float(denoiser.schedule.abar[t])
            velocity = abar**0.5 * noise - (1 - abar) ** 0.5 * z0
            with torch.no_grad():
                out = denoiser(z, t)
            candidates = (
                ("the noise", noise),
                ("the image", z0),
                ("the velocity", velocity),
                ("minus the noise", -noise),
            )
            errors = {name: float((out - value).square().mean()) for name, value in candidates}
            nearest = min(errors, key=lambda name: errors[name])
            assert nearest == "the noise", (
                f"at t = {t} the prediction is nearer to {nearest} (mean squared error {errors[nearest]:.3g}) than "
                f"to the noise ({errors['the noise']:.3g}); convert it, see defense.denoisers.predictions"
            )

    def test_error_is_less_than_that_of_leaving_the_noise_in(self) -> None:
        r"""At every level, small ones too: :math:`E(\hat\epsilon - \epsilon)^2 <` ``error_at_most``.

        The image that is predicted is then nearer to the clean one than the noised one is. Labels that count from the
        wrong end or off by a scale show here.
        """
        denoiser = self._denoiser()
        for t in self.levels():
            _, noise, z = self._noised(t)
            with torch.no_grad():
                error = float((denoiser(z, t) - noise).square().mean())
            assert error < self.error_at_most, (
                f"at t = {t} the mean squared error of the noise is {error:.3g}, not below {self.error_at_most:g}: "
                "is the level told as the network counts it, and are these images of its data?"
            )

    def test_variance_output_is_there_if_and_only_if_the_config_says_so(self) -> None:
        """``variance: learned`` takes it; the prediction beside it is the same."""
        config, denoiser, t = self.config(), self._denoiser(), self.levels()[2]
        _, _, z = self._noised(t)
        with torch.no_grad():
            out, variance = denoiser.with_variance(z, t)
            assert torch.equal(out, denoiser(z, t)), "with_variance() predicts another noise than forward()"
        returned = variance is not None
        assert returned == config.learned_variance, (
            f"config.learned_variance is {config.learned_variance}, but with_variance() returns "
            f"{'one' if returned else 'none'}"
        )
        assert variance is None or variance.shape == z.shape, "the variance output has not the shape of the images"

    def test_id_stays_when_resolved_again(self) -> None:
        """Hashes are filled in once."""
        config = self.config()
        assert config.resolved(Path()).id == config.id, "a config that is resolved twice has another id"
