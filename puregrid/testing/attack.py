r"""The contract of attacks.

An attack maps images, the attacked function and its own randomness to images inside ball and image range: a function
of its arguments, per image, that asks the defence through its :class:`~tasks.attacks.Target` alone, so that what rows
say of draws, gradients and cost is true.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from defense.denoisers import OracleConfig
from defense.gradients import GradientMode
from defense.purifiers import DiffPureConfig, IterativePurifier, Purifier
from defense.randomness import Omega
from puregrid.testing.demands import LabelledSpecContract, under_global_seeds
from tasks.attacks import (
    AttackConfig,
    AttackResult,
    DerivedAttackConfig,
    Given,
    Target,
    perturbation_norms,
)
from tasks.attacks.losses import point_loss

__all__ = ["AttackContract", "SmoothClassifier"]

_FIRST_ID = 3


class SmoothClassifier(nn.Module):
    """A small network without kinks, asked image by image: its rounding cannot depend on the batch."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.kernel = nn.Parameter(torch.randn(6, channels, 3, 3, generator=generator), requires_grad=False)
        self.weight = nn.Parameter(torch.randn(classes, 96, generator=generator), requires_grad=False)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Logits, shape (B, classes), of images in [0, 1], shape (B, C, H, W)."""
        return torch.cat([self._logits(image.unsqueeze(0)) for image in x])

    def _logits(self, image: Tensor) -> Tensor:
        features = F.adaptive_avg_pool2d(F.conv2d(image - 0.5, self.kernel, padding=1).tanh(), 4)
        return features.flatten(1) @ self.weight.T


class _Watched(nn.Module):
    """A classifier that counts the images that it was shown and the gradients that were taken through it."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier
        self.images = 0
        self.gradients = 0
        self.train(classifier.training)

    def forward(self, x: Tensor) -> Tensor:
        self.images += len(x)
        logits: Tensor = self.classifier(x)
        if logits.requires_grad:
            logits.register_hook(self._differentiated)  # type: ignore[no-untyped-call]
        return logits

    def _differentiated(self, gradient: Tensor) -> None:
        self.gradients += 1


class AttackContract(LabelledSpecContract):
    """The suite. Every method whose name starts with ``test_`` is one demand.

    Attributes:
        by_position: Whether random numbers belong to the place in a batch and not to the image, as in packages that
            are wrapped. Results then depend on the size of a unit, and the demand on batches is not made.
        stops_early: Whether images may cost less than ``evaluations``; they never cost more.
        ascends: Whether the loss of the result is at least that of the clean images, which only controls deny.
    """

    by_position: ClassVar[bool] = False
    stops_early: ClassVar[bool] = False
    ascends: ClassVar[bool] = True

    @abstractmethod
    def config(self) -> AttackConfig:
        """Return the config under test, resolved."""

    def images(self) -> Tensor:
        """At least three different images in [0, 1], shape (B, C, H, W), pixels of 0 and of 1 among them."""
        generator = torch.Generator().manual_seed(0)
        return (torch.rand(4, 1, 8, 8, generator=generator) * 1.4 - 0.2).clamp(0, 1)

    def classifier(self) -> nn.Module:
        """Return the attacked classifier, frozen: images in [0, 1] to logits, without kinks, image by image."""
        return SmoothClassifier(self.images().shape[1], 4)

    def labels(self) -> Tensor:
        """True labels, shape (B,): what the classifier says of the clean images."""
        with torch.no_grad():
            labels: Tensor = self.classifier()(self.images()).argmax(1)
        return labels

    def purifier(self) -> Purifier:
        """The purifier that an attack meets which knows it; by default DiffPure with a denoiser in closed form."""
        denoiser = OracleConfig(schedule="linear-1000")
        return DiffPureConfig(denoiser=denoiser, schedule="linear-1000", t_star=60, steps=2).build()

    def sources(self) -> Sequence[AttackConfig]:
        """Return the attacks that one is made of which is made of others' images, in their order."""
        return ()

    def target(
        self, config: AttackConfig, classifier: nn.Module, labels: Tensor, omega: Omega, purifier: Purifier | None
    ) -> Target:
        """Return the attacked function, as the attack stage makes it from the threat model of the config."""
        if purifier is None:
            return Target(classifier, labels, omega)
        return Target(
            classifier,
            labels,
            omega.within("eot"),
            purifier,
            mode=GradientMode.parse(config.gradient or "exact"),
            draws=config.eot,
            fixed=config.knows == "randomness",
            attacked=config.attacked,
        )

    def _target(
        self,
        config: AttackConfig,
        positions: Sequence[int] | None = None,
        labels: Tensor | None = None,
        classifier: nn.Module | None = None,
        purifier: Purifier | None = None,
    ) -> tuple[Target, Tensor, Omega]:
        """Return the arguments of ``run``, for the images at some positions."""
        x = self.images()
        chosen = list(range(len(x)) if positions is None else positions)
        omega = Omega.of(config.id, 0, "attack", [_FIRST_ID + position for position in chosen])
        labels = (self.labels() if labels is None else labels)[chosen]
        if purifier is None and not config.static:
            purifier = self.purifier()
        return self.target(config, classifier or self.classifier(), labels, omega, purifier), x[chosen], omega

    def _attack(self, config: AttackConfig, target: Target, x: Tensor, omega: Omega) -> AttackResult:
        if not isinstance(config, DerivedAttackConfig):
            return config.run(target, x, omega)
        from_sources = []
        for source in self.sources():
            source_omega = Omega.of(source.id, 0, "attack", omega.image_ids)
            purifier = None if source.static else self.purifier()
            source_target = self.target(source, self.classifier(), target.labels, source_omega, purifier)
            from_sources.append(Given(source.run(source_target, x, source_omega).images))
        return config.combine(target, x, from_sources)

    def _run(
        self, config: AttackConfig, positions: Sequence[int] | None = None, labels: Tensor | None = None
    ) -> AttackResult:
        return self._attack(config, *self._target(config, positions, labels))

    def test_images_lie_inside_ball_and_range_in_float64(self) -> None:
        """Exactly: a check of stored images in float64 finds none outside."""
        config, x = self.config(), self.images()
        images = self._run(config).images
        outside = ((images < 0) | (images > 1)).any()
        assert not outside, f"pixels reach from {float(images.min())!r} to {float(images.max())!r}, outside [0, 1]"
        norms = perturbation_norms(images, x)
        if config.norm in norms:  # the others bound no distance of pixels
            largest = float(norms[config.norm].detach().max())
            assert largest <= config.eps, f"a perturbation has {config.norm} norm {largest!r} > eps = {config.eps!r}"

    def test_result_has_an_image_and_a_loss_for_every_image(self) -> None:
        """Float32 images as they are stored, values for the rows, and what was given is left as it was."""
        config, x, y = self.config(), self.images(), self.labels()
        target, clean, omega = self._target(config)
        result = self._attack(config, target, clean, omega)
        assert torch.equal(clean, x), "the attack changed the clean images in place"
        assert torch.equal(target.labels, y), "the attack changed the labels in place"
        assert result.images.shape == x.shape, f"images of shape {tuple(x.shape)} became {tuple(result.images.shape)}"
        assert result.images.dtype == torch.float32, f"images are stored as float32, these are {result.images.dtype}"
        assert result.images.isfinite().all(), "an image holds NaN or infinite pixels"
        assert not result.images.requires_grad, "the images are still in a graph of gradients: detach them"
        for name, column in {"loss": result.loss, **result.columns}.items():
            assert column.shape[:1] == x.shape[:1], f"{name} has shape {tuple(column.shape)} for {len(x)} images"
        for name, note in result.notes.items():
            assert isinstance(note, int | float | str), f"note {name} is {note!r}: a number or a text is wanted"

    def test_same_omega_gives_same_bits(self) -> None:
        """Twice from one config, and from one that was made anew, as another worker does."""
        config, anew = self.config(), self.config()
        first = self._run(config).images
        assert torch.equal(self._run(config).images, first), "a second run with the same omega gave other images"
        assert torch.equal(self._run(anew).images, first), "a config that was made anew gave other images"

    def test_image_is_attacked_alike_in_any_batch(self) -> None:
        """Alone, in another order, and beside images with other labels."""
        if self.by_position:
            return
        config, y = self.config(), self.labels()
        last = len(y) - 1
        whole = _per_image(self._run(config), last)
        alone = _per_image(self._run(config, [last]), 0)
        turned = _per_image(self._run(config, range(last, -1, -1)), 0)
        classes = self.classifier()(self.images()[:1]).shape[1]
        other_labels = torch.where(torch.arange(last + 1) < last, (y + 1) % classes, y)
        beside = _per_image(self._run(config, labels=other_labels), last)
        for result, how in ((alone, "alone"), (turned, "in another order"), (beside, "beside other labels")):
            worst = float((result["image"] - whole["image"]).abs().max())
            assert worst == 0, f"{how} an image ends {worst:.3g} from where it ends in a batch"
            for name in result.keys() & whole.keys():
                value, expected = result[name].double(), whole[name].double()
                same = torch.allclose(value, expected, rtol=1e-4, atol=1e-6, equal_nan=True)
                assert same, f"{how} the {name} of an image is {value}, in a batch {expected}"

    def test_global_random_states_have_no_influence_and_stay(self) -> None:
        """Random numbers come from omega alone."""
        config = self.config()
        images = under_global_seeds(lambda: self._run(config).images, "the attack")
        assert torch.equal(*images), "a global seed changed the images"

    def test_networks_are_left_as_they_were(self) -> None:
        """All units of a worker share them."""
        config, classifier = self.config(), self.classifier()
        purifier = None if config.static else self.purifier()
        networks = [network for network in (classifier, purifier) if network is not None]
        before = [_state(network) for network in networks]
        self._attack(config, *self._target(config, classifier=classifier, purifier=purifier))
        for network, old in zip(networks, before, strict=True):
            name = type(network).__name__
            for key, value in _state(network).items():
                assert torch.equal(value, old[key]), f"the attack left {key} of {name} changed"

    def test_black_box_takes_no_gradient(self) -> None:
        """``black_box`` says that the attacker sees scores alone."""
        config = self.config()
        if not config.black_box:
            return
        watched = _Watched(self.classifier())
        target, x, omega = self._target(config, classifier=watched)
        self._attack(config, target, x, omega)
        taken = watched.gradients + sum(target.tally.gradients.values())
        assert taken == 0, f"config.black_box is true, but gradients were taken {taken} times"

    def test_evaluations_are_those_that_are_counted(self) -> None:
        """Costs in plans and estimates come from ``evaluations``, those in rows from the target."""
        config = self.config()
        target, x, omega = self._target(config)
        self._attack(config, target, x, omega)
        draws = 1 if isinstance(config, DerivedAttackConfig) else target.draws
        claimed = config.evaluations * draws
        for image, count in ((image, target.tally.evaluations[image]) for image in omega.image_ids):
            right = count <= claimed if self.stops_early or config.stops else count == claimed
            assert right, (
                f"config.evaluations is {config.evaluations} with {draws} draws each, but image {image} was "
                f"evaluated {count} times"
            )

    def test_classifier_is_asked_through_the_target_alone(self) -> None:
        """Calls past the target are not counted, and see no purifier."""
        config, watched = self.config(), _Watched(self.classifier())
        target, x, omega = self._target(config, classifier=watched)
        self._attack(config, target, x, omega)
        counted = sum(target.tally.evaluations.values()) + sum(target.tally.points.values())
        assert watched.images <= counted, f"the classifier saw {watched.images} images, the target counted {counted}"

    def test_attack_that_knows_the_purifier_asks_it(self) -> None:
        """Otherwise a static attack would be reported as an adaptive one."""
        config = self.config()
        if config.static:
            return
        purifier = self.purifier()
        calls: list[int] = []
        for part in purifier.modules():  # chains are walked step by step, surrogates share the networks inside
            part.register_forward_pre_hook(lambda module, arguments: calls.append(1))
        if isinstance(purifier, IterativePurifier):
            start = purifier.start

            def counted(x: Tensor, omega: Omega) -> Tensor:
                calls.append(1)
                return start(x, omega)

            purifier.start = counted  # type: ignore[method-assign]
        self._attack(config, *self._target(config, purifier=purifier))
        assert calls, f"config.knows is {config.knows!r}, but the purifier was never asked"

    def test_runs_on_the_bare_classifier(self) -> None:
        """Cells without a defence are attacked by what :meth:`on_bare_classifier` returns."""
        bare = self.config().on_bare_classifier()
        if isinstance(bare, DerivedAttackConfig):
            return  # its sources are others then
        assert bare.static, f"on_bare_classifier() returned an attack that knows the {bare.knows}"
        images = self._run(bare).images
        assert images.isfinite().all(), "on the bare classifier an image holds NaN or infinite pixels"

    def test_loss_is_not_lower_than_at_the_clean_images(self) -> None:
        """On a classifier without kinks, in the mean over the images, on draws that the attack has not chosen by."""
        if not self.ascends:
            return
        config, x, y = self.config(), self.images(), self.labels()
        images = self._run(config).images.to(x)
        omega = Omega.of("contract", 0, "judge", range(len(x)))
        purifier = None if config.static else self.purifier()
        judge = Target(self.classifier(), y, omega, purifier, draws=1 if config.static else 32, fixed=True)
        clean, attacked = (float(judge.evaluate(at, point_loss("ce")).loss.mean()) for at in (x, images))
        assert attacked >= clean, f"the mean loss fell from {clean:.6g} at the clean images to {attacked:.6g}"


def _per_image(result: AttackResult, position: int) -> dict[str, Tensor]:
    """Return the result of an attack for one image."""
    columns = {"image": result.images, "loss": result.loss, **result.columns}
    return {name: column[position].detach() for name, column in columns.items() if position < len(column)}


def _state(network: nn.Module) -> dict[str, Tensor]:
    """Copies of all that an attack could leave changed in a network."""
    state = {f"buffer {name}": buffer.clone() for name, buffer in network.named_buffers()}
    for name, parameter in network.named_parameters():
        state[f"parameter {name}"] = parameter.detach().clone()
        state[f"requires_grad of {name}"] = torch.tensor(parameter.requires_grad)
        state[f"grad of {name}"] = torch.zeros(0) if parameter.grad is None else parameter.grad.clone()
    for name, module in network.named_modules():
        state[f"training mode of {name or 'the whole'}"] = torch.tensor(module.training)
    return state
