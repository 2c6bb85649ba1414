r"""The contract of classifiers.

A classifier maps images in [0, 1] to logits: a frozen function, per image, with the normalisation inside and with the
gradient that it says it has.
"""

import copy
from abc import abstractmethod
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from defense.classifiers import ClassifierConfig, FeatureNet, Normalised
from puregrid.testing.demands import LabelledSpecContract, assert_frozen, assert_gradient, under_global_seeds

__all__ = ["ClassifierContract"]


class ClassifierContract(LabelledSpecContract):
    """The suite. Every method whose name starts with ``test_`` is one demand.

    Attributes:
        batch_tolerance: How much a logit may differ between batches, relative to the largest: convolutions round
            otherwise in batches of another size.
        gradient_tolerance: Relative difference of the gradient from central differences, in float64.
    """

    batch_tolerance: ClassVar[float] = 1e-4
    gradient_tolerance: ClassVar[float] = 1e-3

    @abstractmethod
    def config(self) -> ClassifierConfig:
        """Return the config under test, resolved."""

    def images(self) -> Tensor:
        """At least three different images in [0, 1], shape (B, C, H, W)."""
        shape = self.config().architecture.image_shape
        return torch.rand(3, *shape, generator=torch.Generator().manual_seed(0))

    def known(self) -> tuple[Tensor, Tensor, float] | None:
        """Real images in [0, 1], their labels, and the least share that is classified right; None if not at hand."""
        return None

    def _classifier(self) -> nn.Module:
        return self.config().build()

    def test_logits_are_finite_and_one_for_every_class(self) -> None:
        """Shape (B, classes), and logits: some losses take differences of them, which those of shares are not."""
        x, classes = self.images(), self.config().architecture.classes
        before = x.clone()
        with torch.no_grad():
            logits = self._classifier()(x)
        assert torch.equal(x, before), "the classifier changed its input in place"
        assert logits.shape == (len(x), classes), (
            f"logits have shape {tuple(logits.shape)}, not ({len(x)}, {classes}): {len(x)} images, {classes} classes"
        )
        assert logits.dtype == x.dtype, f"images of {x.dtype} have logits of {logits.dtype}"
        assert logits.isfinite().all(), "logits hold NaN or infinite values"
        shares = bool((logits >= 0).all()) and torch.allclose(logits.sum(1), torch.ones(len(x)), atol=1e-3)
        assert not shares, "the outputs are probabilities; the classifier returns logits, without a softmax"

    def test_same_images_give_same_bits(self) -> None:
        """Twice from one network, other images in between, and from one that was built anew."""
        x, classifier = self.images(), self._classifier()
        with torch.no_grad():
            first = classifier(x)
            classifier(1 - x)
            assert torch.equal(classifier(x), first), "after other images the same images have other logits"
            assert torch.equal(self._classifier()(x), first), "a classifier built anew gave other logits"

    def test_image_is_classified_alike_in_any_batch(self) -> None:
        """No reduction over the batch."""
        x, classifier = self.images(), self._classifier()
        last = len(x) - 1
        with torch.no_grad():
            whole = classifier(x)
            alone = classifier(x[last:])
            turned = classifier(x.flip(0)).flip(0)
        largest = float(whole.abs().max())
        for logits, expected, how in ((alone, whole[last:], "alone"), (turned, whole, "in another order")):
            worst = float((logits - expected).abs().max())
            assert worst <= self.batch_tolerance * largest, f"{how} a logit of an image differs by {worst:.3g}"

    def test_global_random_states_have_no_influence_and_stay(self) -> None:
        """A classifier draws nothing: what is random is a purifier."""
        x, classifier = self.images(), self._classifier()

        def compute() -> Tensor:
            leaf = x.clone().requires_grad_()
            logits: Tensor = classifier(leaf)
            if logits.requires_grad:
                torch.autograd.grad(logits.sum(), leaf)
            return logits.detach()

        assert torch.equal(*under_global_seeds(compute, "the classifier")), "a global seed changed the logits"

    def test_value_does_not_depend_on_whether_gradients_are_recorded(self) -> None:
        """Judgement runs without gradients, attacks with: they must see one classifier."""
        x, classifier = self.images(), self._classifier()
        with torch.no_grad():
            plain = classifier(x)
        recorded = classifier(x.clone().requires_grad_()).detach()
        worst = float((recorded - plain).abs().max())
        assert torch.equal(recorded, plain), f"with gradients recorded a logit differs by {worst:.3g}"

    def test_calls_leave_no_state(self) -> None:
        """Running means, counters and caches of one unit would reach the next."""
        classifier = self._classifier()
        before = {name: value.clone() for name, value in classifier.state_dict().items()}
        classifier(self.images())
        for name, value in classifier.state_dict().items():
            assert torch.equal(value, before[name]), f"a call changed {name}"

    def test_gradient_is_that_of_central_differences(self) -> None:
        """In float64, for every image's largest logit."""
        x, classifier = self.images().double(), copy.deepcopy(self._classifier()).double()
        with torch.no_grad():
            top = classifier(x).argmax(1)
        for image, label in zip(x, top.tolist(), strict=True):

            def logit(at: Tensor, label: int = label) -> Tensor:
                value: Tensor = classifier(at.unsqueeze(0))[0, label]
                return value

            assert_gradient(logit, image, self.gradient_tolerance)

    def test_network_is_frozen_and_in_evaluation_mode(self) -> None:
        """Gradients are taken with respect to images alone, and no layer draws or learns."""
        assert_frozen(self._classifier(), "the classifier")

    def test_normalisation_is_inside_and_is_the_config_s(self) -> None:
        r"""With mean 0 and deviation 1, :math:`(x - \mathrm{mean})/\mathrm{std}` has the logits of x."""
        config, x = self.config(), self.images()
        assert config.mean is not None and config.std is not None, "the config is not resolved: no mean and std"
        mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (config.mean, config.std))
        channels = len(config.mean)
        other = config.model_copy(update={"mean": (0.0,) * channels, "std": (1.0,) * channels})
        with torch.no_grad():
            expected, logits = config.build()(x), other.build()((x - mean) / std)
        worst = float((logits - expected).abs().max())
        assert worst <= self.batch_tolerance * float(expected.abs().max()), (
            f"logits of x differ by {worst:.3g} from those of (x - mean)/std in the network with mean 0 and std 1"
        )

    def test_known_images_are_classified_right(self) -> None:
        """Weights, order of classes and normalisation belong together; no other demand can tell."""
        known = self.known()
        if known is None:
            return
        x, labels, least = known
        with torch.no_grad():
            right = float((self._classifier()(x).argmax(1) == labels).double().mean())
        assert right >= least, (
            f"{100 * right:.1f} % of the known images are classified right, not {100 * least:.1f} %"
        )

    def test_latent_is_what_the_last_layer_takes(self) -> None:
        """Guided purifiers and measures in feature space take ``latent``; networks without one are no use to them."""
        classifier, x = self._classifier(), self.images()
        if not isinstance(classifier, Normalised) or not isinstance(classifier.net, FeatureNet):
            return
        with torch.no_grad():
            worst = float((classifier.net.classify(classifier.latent(x)) - classifier(x)).abs().max())
        assert worst <= 1e-5, f"classify(latent(x)) differs from the logits by {worst:.3g}"

    def test_id_is_that_of_the_weights_wherever_they_lie(self) -> None:
        """A full hash of the checkpoint is in the id, its path is not, and resolving again changes nothing."""
        config = self.config()
        assert config.sha256 is not None and len(config.sha256) == 64, "the config does not hold a full sha256"
        assert config.resolved(Path()).id == config.id, "a config that is resolved twice has another id"
        assert config.model_copy(update={"weights": "elsewhere"}).id == config.id, "the id depends on the path"
        other = config.model_copy(update={"sha256": "0" * 64})
        assert other.id != config.id, "the id does not depend on the weights"
