r"""Samples of a smoothed classifier: how often a base classifier gives each answer under Gaussian noise.

.. math:: y_j = x + \sigma n_j, \quad n_j \sim N(0, I), \qquad \text{counts}_c = \#\{j: f(y_j; \omega_j) = c\}

The noise is exactly that, in units of [0, 1] pixels, and is not clipped: clipping, rescaling, denoising are the base
classifier's business. Which f are valid (Cohen et al., arXiv 1902.02918, theorem 1): **any function of the noised
image alone**, deterministic or random. A random one is one more law over labels, if its randomness is independent of
the image and from sample to sample; so each sample has a key of its own. What is *not* valid is an f that sees x, the
label, the attacker's budget or other samples of the batch. Base classifiers here:

* :class:`Bare`: a classifier as it is, usually one trained on Gaussian noise;
* :class:`Denoised`: the noise of the certificate *is* the forward noise of a diffusion (Carlini et al.,
  arXiv 2206.10550). At the smallest level t whose sigma_eq is at least sigma, the state is

  .. math:: z_t = \sqrt{\bar\alpha_t}\,(2y - 1),

  which the purifier's reverse process takes to an image: in one step (one-shot denoising) or in several, with K
  reverse seeds whose answers vote (DensePure, Xiao et al. 2022). The network expects marginally more noise than there
  is, by the fraction of a step to t; the certificate, with the noise that there is, does not mind;
* :class:`Purified`: any purifier behind the noise, its own forward noise added on top.

Keys: sample j of an image draws its noise from role ``certify-select`` or ``certify-estimate``, draw j, purpose
``smoothing``; what f draws has the role with ``/vote-0``, ``/vote-1``, ... appended. Sample j is always computed at
place ``j % batch`` of batch ``j // batch`` of its image, among the same neighbours, so that counts of parts add up to
those of the whole to the last bit, however the samples are divided between batches. Only the last samples, where they
are fewer than a batch, share one with those of other images; so do all selection samples, which belong to one unit.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from defense.aggregate import majority_vote
from defense.certify.bounds import check_sigma
from defense.certify.certificate import ESTIMATE, SELECT, Counts
from defense.errors import InvalidInput
from defense.purifiers.base import Purifier
from defense.purifiers.diffusion import Diffusion
from defense.randomness import Omega
from defense.schedules import NoiseLevel, Schedule

__all__ = ["Bare", "BaseClassifier", "Denoised", "Purified", "sample_counts", "smoothing_counts", "smoothing_level"]

Precision = Callable[[], contextlib.AbstractContextManager[Any]]


class BaseClassifier(Protocol):
    """The f of a smoothed classifier; see the module for what it may depend on."""

    def __call__(self, noisy: Tensor, sigma: float, omega: Omega) -> npt.NDArray[np.int64]:
        """Answers to noised images.

        Arguments:
            noisy: ``x + sigma n`` in units of [0, 1] pixels, not clipped, shape (B, C, H, W).
            sigma: Standard deviation of that noise.
            omega: Randomness of the base classifier's own, one key per sample.

        Returns:
            Class numbers, shape (B,).
        """
        ...


def smoothing_level(schedule: Schedule, sigma: float) -> NoiseLevel:
    """Return the level that fits noise ``sigma`` (pixel units): the smallest t with sigma_eq >= sigma.

    Raises:
        InvalidInput: The schedule has no such level.
    """
    return schedule.level(schedule.t_for_sigma(sigma))


def _answers(logits: Tensor) -> npt.NDArray[np.int64]:
    if not bool(torch.isfinite(logits).all()):
        raise FloatingPointError("the base classifier gave NaN or infinite logits; they are no answer to count")
    answers: npt.NDArray[np.int64] = logits.argmax(1).cpu().numpy()
    return answers


def _refuse_shared_noise(purifier: Purifier) -> None:
    if any(getattr(part, "shared_forward", False) for part in purifier.modules()):
        raise InvalidInput(
            "this purifier shares its forward noise among all draws of an image, so that the samples of a "
            "certificate would not be independent. Let the certificate's noise be the forward noise (`Denoised`)."
        )


class Bare:
    """A classifier of noised images, without anything in front."""

    def __init__(self, classifier: nn.Module) -> None:
        self.classifier = classifier

    def __call__(self, noisy: Tensor, sigma: float, omega: Omega) -> npt.NDArray[np.int64]:
        """See :class:`BaseClassifier`."""
        return _answers(self.classifier(noisy))


class _Voting:
    """Purify with K draws, classify each, and let the answers vote; a tie goes to the answer that came first.

    With ``mean`` the probabilities of the draws are averaged instead, which is as valid: the draws are independent of
    the image (DiffSmooth, Zhang et al., arXiv 2308.14333, section 3).
    """

    def __init__(self, classifier: nn.Module, votes: int, precision: Precision, mean: bool = False) -> None:
        if votes < 1:
            raise InvalidInput(f"votes = {votes}: a base classifier asks at least one draw.")
        self.classifier = classifier
        self.votes = votes
        self.precision = precision
        self.mean = mean

    def _image(self, noisy: Tensor, sigma: float, omega: Omega) -> Tensor:
        raise NotImplementedError

    def __call__(self, noisy: Tensor, sigma: float, omega: Omega) -> npt.NDArray[np.int64]:
        """See :class:`BaseClassifier`."""
        votes, total = [], None
        for vote in range(self.votes):
            with self.precision():
                image = self._image(noisy, sigma, omega.within(f"vote-{vote}"))
            logits = self.classifier(image.to(noisy.dtype))
            if self.mean:
                probability = logits.double().softmax(1)
                total = probability if total is None else total + probability
            else:
                votes.append(_answers(logits))
        return majority_vote(np.stack(votes, 1)) if total is None else _answers(total)


class Denoised(_Voting):
    """The reverse process of a diffusion purifier, from the noise of the certificate, then the classifier.

    One-shot denoising with the purifier of :class:`~defense.purifiers.one_shot.OneShotConfig` and one vote; DensePure
    with that of :class:`~defense.purifiers.densepure.DensePureConfig` and K votes. Rounds after the first, and
    guidance by the noised image, are functions of that image too.

    Arguments:
        purifier: Its first level must be the one that fits sigma.
        classifier: Images to logits, frozen.
        votes: K, the number of reverse seeds.
        precision: Context of the purification (autocast).
        mean: Average the probabilities of the draws instead of counting their answers.

    Raises:
        InvalidInput: No votes, a purifier that starts from noise alone, or one that shares the noise of later rounds.
    """

    def __init__(
        self,
        purifier: Diffusion,
        classifier: nn.Module,
        votes: int = 1,
        precision: Precision = contextlib.nullcontext,
        *,
        mean: bool = False,
    ) -> None:
        super().__init__(classifier, votes, precision, mean)
        if purifier.from_noise:
            raise InvalidInput("a purifier that starts from noise alone has no place for the noise of a certificate.")
        if len(purifier.rounds) > 1:
            _refuse_shared_noise(purifier)
        self.purifier = purifier

    def _image(self, noisy: Tensor, sigma: float, omega: Omega) -> Tensor:
        sampler = self.purifier.rounds[0]
        wanted = smoothing_level(sampler.schedule, sigma)
        if sampler.grid[0] != wanted.t_star:
            raise InvalidInput(
                f"noise sigma = {sigma} is level t_star = {wanted.t_star} of {sampler.schedule.name}, but the "
                f"purifier begins at {sampler.grid[0]}: build it with `sigma_eq: {sigma}`."
            )
        z = wanted.abar**0.5 * (2 * noisy - 1)
        for i in range(self.purifier.length):
            z = self.purifier.step(i, z, noisy, omega)
        return self.purifier.finish(z, noisy, omega)


class Purified(_Voting):
    """Any purifier in front of the classifier, behind the noise of the certificate.

    Arguments:
        purifier: The purifier; one that diffuses adds its own noise to that of the certificate.
        classifier, votes, precision, mean: See :class:`Denoised`; the votes are those of K draws.
        clamp: Clamp the noised image to [0, 1], which purifiers are made for. It is the first step of f, and valid.

    Raises:
        InvalidInput: No votes, or a purifier whose draws share forward noise (DensePure): see :class:`Denoised`.
    """

    def __init__(
        self,
        purifier: Purifier,
        classifier: nn.Module,
        votes: int = 1,
        precision: Precision = contextlib.nullcontext,
        *,
        clamp: bool = True,
        mean: bool = False,
    ) -> None:
        super().__init__(classifier, votes, precision, mean)
        _refuse_shared_noise(purifier)
        self.purifier = purifier
        self.clamp = clamp

    def _image(self, noisy: Tensor, sigma: float, omega: Omega) -> Tensor:
        image: Tensor = self.purifier(noisy.clamp(0, 1) if self.clamp else noisy, omega)
        return image


def sample_counts(
    base: BaseClassifier, x: Tensor, sigma: float, omega: Omega, first: int, count: int, batch: int, classes: int
) -> npt.NDArray[np.int64]:
    """Count how often each class is the answer among samples ``first`` to ``first + count - 1`` of each image.

    Whole batches are of one image. What is left over at the end of a range that begins with a batch fills batches
    with that of the other images, so that the base classifier is called ``ceil(len(x) * count / batch)`` times. Of a
    range that begins inside a batch, the samples around it are computed and dropped. Selection samples that are fewer
    than a batch fill it with those of other images as long as these are whole.

    Arguments:
        base: Base classifier.
        x: Images in [0, 1], shape (B, C, H, W).
        sigma: Standard deviation of the noise, pixel units.
        omega: Ids of the images; role ``certify-select`` or ``certify-estimate``. Its draws are replaced by samples.
        first: Number of the first sample.
        count: Number of samples.
        batch: Samples that are computed together. It changes the last bits of logits, so it is the spec's.
        classes: Number of classes.

    Returns:
        Counts, shape (B, classes), each row of sum ``count``.

    Raises:
        InvalidInput: Another role, or numbers out of range.
        FloatingPointError: The base classifier failed.
    """
    check_sigma(sigma)
    if omega.role not in (SELECT, ESTIMATE):
        raise InvalidInput(f"samples of a certificate have role {SELECT!r} or {ESTIMATE!r}, not {omega.role!r}.")
    if first < 0 or count < 0 or batch < 1 or classes < 2:
        raise InvalidInput(
            f"samples from {first}, {count} of them in batches of {batch}, {classes} classes: the first two count "
            "from 0, a batch holds one at least, and there are two classes or more."
        )
    if len(x) != len(omega):
        raise InvalidInput(f"{len(x)} images with the randomness of {len(omega)}.")
    counts = np.zeros((len(x), classes), dtype=np.int64)
    if not count:
        return counts
    # Guided purifiers enable gradients for themselves, which inference mode would forbid.
    with torch.no_grad():
        for rows, samples in _batches(len(x), first, count, batch, omega.role):
            keys = replace(
                omega, image_ids=tuple(omega.image_ids[row] for row in rows), draws=tuple(map(int, samples))
            )
            # Of one image a view: a copy of it for each sample would take as much memory as the noise.
            one = rows[0] == rows[-1]
            repeated = x[rows[0]].expand(len(rows), *x.shape[1:]) if one else x[torch.from_numpy(rows).to(x.device)]
            answers = base(repeated + sigma * keys.normal("smoothing", 0, repeated), sigma, keys)
            if len(answers) != len(keys) or answers.min() < 0 or answers.max() >= classes:
                raise InvalidInput(
                    f"the base classifier gave {len(answers)} answers to {len(keys)} samples, from "
                    f"{answers.min()} to {answers.max()}; with {classes} classes they go from 0 to {classes - 1}."
                )
            inside = (samples >= first) & (samples < first + count)
            np.add.at(counts, (rows[inside], answers[inside]), 1)
    return counts


def _batches(
    images: int, first: int, count: int, batch: int, role: str
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Yield the batches of :func:`sample_counts`: the place of each sample's image, and the sample's number."""
    if role == SELECT and first == 0 and count < batch:  # never divided, and as it was before estimation did more
        for row in range(0, images, batch // count):
            rows = np.arange(row, min(row + batch // count, images))
            yield rows.repeat(count), np.tile(np.arange(count), len(rows))
        return
    tail = count % batch if first % batch == 0 else 0
    for row in range(images):
        for start in range(first // batch * batch, first + count - tail, batch):
            yield np.full(batch, row), np.arange(start, start + batch)
    for start in range(0, images * tail, batch):
        rows, places = np.divmod(np.arange(start, min(start + batch, images * tail)), tail)
        yield rows, first + count - tail + places


def smoothing_counts(
    base: BaseClassifier, x: Tensor, sigma: float, omega: Omega, first: int, count: int, batch: int, classes: int
) -> list[Counts]:
    """Return :func:`sample_counts` as one :class:`~defense.certify.Counts` per image, which know their samples."""
    counts = sample_counts(base, x, sigma, omega, first, count, batch, classes)
    role = SELECT if omega.role == SELECT else ESTIMATE
    return [Counts.of(i, role, row, first) for i, row in zip(omega.image_ids, counts, strict=True)]
