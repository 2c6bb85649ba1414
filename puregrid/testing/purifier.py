r"""The contract of purifiers.

A purifier :math:`D(x;\omega)` is a function of its arguments, per image: the same randomness gives the same bits, in
any batch, with or without gradients, and nothing else is read or moved.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from defense.gradients import purify
from defense.models import Models
from defense.purifiers.base import Purifier, PurifierConfig
from defense.randomness import Omega
from puregrid.testing.demands import LabelledSpecContract, assert_frozen, under_global_seeds

__all__ = ["PurifierContract"]


class PurifierContract(LabelledSpecContract):
    """The suite. Every method whose name starts with ``test_`` is one demand.

    Attributes:
        batch_tolerance: How much, in pixels of [0, 1], an image may differ between batches: convolutions round
            otherwise in batches of another size.
        gradient_tolerance: Relative difference of the exact gradient from plain autograd.
    """

    batch_tolerance = 1e-4
    gradient_tolerance = 1e-4

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

    def test_output_is_finite_and_of_the_shape_and_dtype_of_the_images(self) -> None:
        """Images come out as they went in."""
        x = self.images()
        before = x.clone()
        out = self._purifier()(x, self._omega())
        assert out.shape == x.shape, f"images of shape {tuple(x.shape)} became {tuple(out.shape)}"
        assert out.dtype == x.dtype, f"images of {x.dtype} became {out.dtype}"
        assert out.isfinite().all(), "the output holds NaN or infinite pixels"
        assert torch.equal(x, before), "the purifier changed its input in place"

    def test_same_omega_gives_same_bits(self) -> None:
        """Twice from one purifier, and from one that was built anew."""
        x, omega, purifier = self.images(), self._omega(), self._purifier()
        with torch.no_grad():
            first = purifier(x, omega)
            assert torch.equal(purifier(x, omega), first), "a second call with the same omega gave another output"
            assert torch.equal(self._purifier()(x, omega), first), "a purifier built anew gave another output"

    def test_another_draw_differs_if_and_only_if_the_config_says_stochastic(self) -> None:
        """``stochastic`` decides how many draws are made; it must be true."""
        x, purifier, stochastic = self.images(), self._purifier(), self.config().stochastic
        with torch.no_grad():
            same = torch.equal(purifier(x, self._omega()), purifier(x, self._omega(draw=1)))
        assert same != stochastic, (
            f"config.stochastic is {stochastic}, but another draw gives {'the same' if same else 'another'} output"
        )

    def test_image_is_purified_alike_in_any_batch(self) -> None:
        """No reduction over the batch, no randomness by position."""
        x, purifier = self.images(), self._purifier()
        omega, last = self._omega(), len(x) - 1
        turned = Omega.of(omega.spec_id, omega.seed, omega.role, omega.image_ids[::-1])
        with torch.no_grad():
            whole = purifier(x, omega)
            alone = purifier(x[last:], omega.part(last, last + 1))
            reversed_ = purifier(x.flip(0), turned).flip(0)
        for purified, expected, how in ((alone, whole[last:], "alone"), (reversed_, whole, "in another order")):
            worst = float((purified - expected).abs().max())
            assert worst <= self.batch_tolerance, f"{how} an image differs by {worst:.3g} from itself in a batch"

    def test_global_random_states_have_no_influence_and_stay(self) -> None:
        """Random numbers come from omega alone."""
        x, omega, purifier = self.images(), self._omega(), self._purifier()

        def compute() -> Tensor:
            leaf = x.clone().requires_grad_()
            out = purify(purifier, leaf, omega)
            if out.requires_grad:
                torch.autograd.grad(out.sum(), leaf)
            return out.detach()

        assert torch.equal(*under_global_seeds(compute, "the purifier")), "a global seed changed the output"

    def test_value_does_not_depend_on_whether_gradients_are_recorded(self) -> None:
        """Judgement runs without gradients, attacks with: they must see one defence."""
        x, omega, purifier = self.images(), self._omega(), self._purifier()
        with torch.no_grad():
            plain = purifier(x, omega)
        for name, out in (
            ("plain autograd", purifier(x.clone().requires_grad_(), omega)),
            ("the exact mode", purify(purifier, x.clone().requires_grad_(), omega)),
            ("bpda", purify(purifier, x.clone().requires_grad_(), omega, "bpda")),
        ):
            worst = float((out.detach() - plain).abs().max())
            assert torch.equal(out.detach(), plain), f"with {name} the output differs by {worst:.3g}"

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
        config = self.config()
        counts: list[int] = []
        purifier = _counting(config, self.models(), counts)
        if purifier is None:
            assert config.evaluations == 0, f"no network is evaluated, but config.evaluations is {config.evaluations}"
            return
        with torch.no_grad():
            purifier(self.images(), self._omega())
        assert len(counts) == config.evaluations, (
            f"config.evaluations is {config.evaluations}, but the network was evaluated {len(counts)} times"
        )


def _counting(config: PurifierConfig, models: Models, counts: list[int]) -> Purifier | None:
    """Return the purifier with every call of its denoisers and energy networks counted; None if it loads none."""
    from defense.denoisers import Denoiser
    from defense.energy import EnergyConfig

    loaded: list[nn.Module] = []

    def load(network: Any) -> nn.Module:
        module: nn.Module = models.load(network)
        if isinstance(module, Denoiser) or isinstance(network, EnergyConfig):
            module = copy.deepcopy(module)
            loaded.append(module)
            _count_calls(module, counts)
        return module

    try:
        protected: nn.Module | None = models.protected
    except ValueError:
        protected = None
    purifier = config.build(Models(protected, load))
    return purifier if loaded else None


def _count_calls(module: nn.Module, counts: list[int]) -> None:
    """Count evaluations by either way of calling; one that calls the other is one evaluation."""
    inside: list[int] = []

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def outermost(*args: Any, **kwargs: Any) -> Any:
            if not inside:
                counts.append(1)
            inside.append(1)
            try:
                return call(*args, **kwargs)
            finally:
                inside.pop()

        return outermost

    for name in ("forward", "with_variance"):
        if hasattr(module, name):
            setattr(module, name, counted(getattr(module, name)))
