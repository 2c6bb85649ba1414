r"""The base of every purifier: a map from an image and its randomness to an image.

Purifiers that work in many steps are chains with one state,

.. math:: z_0 = \mathrm{start}(x), \quad z_{i+1} = \mathrm{step}_i(z_i, x), \quad D(x) = \mathrm{finish}(z_n, x),

so that :mod:`defense.gradients` can walk back through them one segment at a time.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

from torch import Tensor, nn

from defense.bounds import UNBOUNDED
from defense.errors import InvalidInput
from defense.models import Models
from defense.randomness import Omega
from defense.registry import Registry
from defense.schedules import NoiseLevel, Schedule
from defense.spec import Spec

__all__ = ["PURIFIERS", "FilterConfig", "IterativePurifier", "Purifier", "PurifierConfig"]


class Purifier(nn.Module, ABC):
    """Maps images to images: ``D(x; omega)``.

    Its networks are frozen: no parameter requires a gradient.
    """

    @abstractmethod
    def forward(self, x: Tensor, omega: Omega) -> Tensor:
        """Purify a batch.

        Arguments:
            x: Images in [0, 1], shape (B, C, H, W).
            omega: The randomness of each batch element; the same omega gives the same output.

        Returns:
            Images, shape (B, C, H, W), differentiable with respect to ``x`` by plain autograd. Where the true
            derivative is zero almost everywhere (JPEG, bit depth) it is straight-through: that of the identity.
        """

    def with_levels(self, x: Tensor, omega: Omega) -> tuple[Tensor, tuple[int, ...] | None]:
        """Purify a batch, and say which diffusion time each image got where the purifier chooses it by the image.

        Returns:
            What :meth:`forward` returns, and t* of each image; None where all have the config's.
        """
        return self(x, omega), None

    def target_logits(self, classifier: Callable[[Tensor], Tensor], x: Tensor, omega: Omega) -> Tensor:
        """Return what is answered at the point that the guidance pulls to, within the graph of ``x``.

        Arguments:
            classifier: The protected classifier, images in [0, 1] to logits.
            x: Images in [0, 1], shape (B, C, H, W).
            omega: The randomness of the purification that is guided.

        Returns:
            Logits, shape (B, classes): by default the classifier's on ``x``, of a guidance that pulls to the input.
        """
        return classifier(x)

    def surrogate(self, steps: int) -> Purifier:
        """The same purifier in at most ``steps`` reverse steps per round, for surrogate gradients; itself here."""
        return self

    def softened(self) -> Purifier:
        """Return the same purifier, value by value, whose backward pass is that of a differentiable approximation.

        Itself where it needs none, or has none.
        """
        return self

    def without_second_moment(self) -> Purifier:
        """Return the same purifier, value by value; its backward pass takes Adam's second moment as a constant.

        Itself where it is no optimiser.
        """
        return self


class IterativePurifier(Purifier):
    """A purifier that is a chain of steps. All in it is a function of the arguments, per batch element."""

    @property
    @abstractmethod
    def length(self) -> int:
        """Number of steps."""

    @abstractmethod
    def start(self, x: Tensor, omega: Omega) -> Tensor:
        """Return the state before step 0, shape (B, ...)."""

    @abstractmethod
    def step(self, i: int, z: Tensor, x: Tensor, omega: Omega, *, guidance_path: bool = True) -> Tensor:
        """Return the state after step ``i``.

        Arguments:
            i: Step, 0 to ``length - 1``.
            z: State before it.
            x: The purifier's input: guidance may look at it in every step.
            omega: See :meth:`forward`. Noise of a step is drawn here, by its key, so that a second call replays it.
            guidance_path: If false, guidance counts as a constant in gradients: neither its dependence on ``x``
                nor its second-order terms are followed. That is a known defect of published attacks; see
                :mod:`defense.gradients`.
        """

    def origin(self, i: int) -> int | None:
        """Number of the state that was noised before state ``i`` was reached, the state before step 0 being state 0.

        -1 stands for the input x, None for a chain that has no forward process.
        """
        return None

    def diffused(self, i: int, origin: Tensor | None, x: Tensor, omega: Omega) -> Tensor:
        """Return the state of the forward process at the level of state ``i``, shape (B, ...).

        Arguments:
            i: State, 1 to ``length``.
            origin: The state that :meth:`origin` names, None for the input.
            x: The purifier's input.
            omega: See :meth:`forward`.
        """
        raise NotImplementedError(f"{type(self).__name__} has no forward process")

    @abstractmethod
    def finish(self, z: Tensor, x: Tensor, omega: Omega) -> Tensor:
        """Return images from the last state, shape (B, C, H, W)."""

    def forward(self, x: Tensor, omega: Omega) -> Tensor:
        """Run the chain; plain autograd keeps the graph of all steps."""
        z = self.start(x, omega)
        for i in range(self.length):
            z = self.step(i, z, x, omega)
        return self.finish(z, x, omega)


class PurifierConfig(Spec, ABC):
    """The config of a purifier: its name under ``purifier`` and all its parameters.

    Arguments:
        unbounded: Fields that are meant although they are beyond their bounds (:mod:`defense.bounds`); ``draws`` too.
    """

    named_by: ClassVar[str | None] = "purifier"
    purifier: str
    unbounded: tuple[str, ...] = UNBOUNDED

    @classmethod
    def class_named(cls, name: str) -> type[PurifierConfig]:
        """See :class:`Spec`."""
        return PURIFIERS.get(name)

    @property
    def stochastic(self) -> bool:
        """Whether the output depends on omega."""
        return True

    @property
    def differentiable(self) -> bool:
        """Whether the exact gradient says anything; false where the backward pass is straight-through."""
        return True

    @property
    def softens(self) -> bool:
        """Whether the gradient mode ``soft`` differs from ``exact``; see :meth:`Purifier.softened`."""
        return False

    @property
    def uses_classifier(self) -> bool:
        """Whether the protected classifier guides the purification."""
        return False

    @property
    def diffuses(self) -> bool:
        """Whether it noises its input and reverses that, so that states of the two directions can be compared."""
        return False

    @property
    def guided(self) -> bool:
        """Whether reverse steps follow the gradient of a guidance, so that attacks need the gradient through it."""
        return False

    @property
    def pulls_to(self) -> str | None:
        """What its guidance pulls the image to (:meth:`Purifier.target_logits`), in words; None for nothing known."""
        return None

    @property
    def knows_eps(self) -> bool:
        """Whether the defence knows the attacker's budget, which real defences do not."""
        return False

    @property
    def schedule_of_levels(self) -> Schedule | None:
        """The schedule of the levels that the purifier chooses for each image; None where it chooses none."""
        return None

    @property
    def noise_level(self) -> NoiseLevel | None:
        """The (t_star, abar, sigma_eq) that rows carry, if the purifier diffuses; the deepest one of several."""
        return None

    @property
    def evaluations(self) -> int:
        """Denoiser (or energy network) evaluations that one draw of one image costs."""
        return 0

    @property
    def classifier_evaluations(self) -> int:
        """Evaluations of guiding classifiers that one draw of one image costs."""
        return 0

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        """(C, H, W) that the purifier is made for, None for any."""
        return None

    def check_images(self, image_shape: tuple[int, int, int]) -> None:
        """Refuse images that the purifier cannot take, before any compute: others than :attr:`image_shape`.

        Arguments:
            image_shape: (C, H, W).

        Raises:
            InvalidInput: Why it cannot, and what to do.
        """
        if self.image_shape not in (None, image_shape):
            raise InvalidInput(
                f"purifier {self.label()!r} takes images of shape {self.image_shape}, not {image_shape}."
            )

    def model_key(self) -> str:
        """Return the key of the large model that the purifier holds: one worker preferably gets equal keys."""
        return ""

    @abstractmethod
    def label(self) -> str:
        """Return a short name with the parameters that distinguish two configs of a sweep, for tables."""

    @abstractmethod
    def build(self, models: Models | None = None) -> Purifier:
        """Load everything and return the purifier, in evaluation mode.

        Arguments:
            models: Where networks come from, and the protected classifier; by default loaded anew.
        """


class FilterConfig(PurifierConfig):
    """A purifier without randomness and without networks."""

    @property
    def stochastic(self) -> bool:
        """False: there is nothing random in it."""
        return False


PURIFIERS: Registry[type[PurifierConfig]] = Registry("purifier", "puregrid.purifiers", subclass_of=PurifierConfig)
