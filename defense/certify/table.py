r"""Summaries of the certificates of many images.

* Certified accuracy at r: share of images whose class is right and whose radius is at least r. An abstention is wrong
  at every r. At r = 0 it is the accuracy of the smoothed classifier itself, where it does not abstain.
* ACR, average certified radius: mean over images of the radius, 0 where the class is wrong (Zhai et al.,
  arXiv 2001.02378); the area under the curve of certified accuracy.
* Upper envelope: at each r the best certified accuracy of any sigma, and the sigma it comes from. It chooses a sigma
  for each r, never one for each image. A bound of all of it (:func:`~defense.certify.bounds.dataset_bound`) divides
  rho by the number of sigmas.

Certificates with another sigma, alpha, rule or guarantee are never averaged: such a mean has no statement.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from defense.certify.bounds import Floats, dataset_bound
from defense.certify.certificate import Certificate, Guarantee, Rule
from defense.errors import InvalidInput

__all__ = [
    "CertifiedSummary",
    "Envelope",
    "average_certified_radius",
    "certified_accuracy",
    "envelope",
    "summarise",
]


def certified_accuracy(right: npt.ArrayLike, radii: npt.ArrayLike, at: npt.ArrayLike) -> Floats:
    """Return the share of images that are right with a radius of at least each r.

    Arguments:
        right: Whether the certified class is the label (false for an abstention), shape (N,).
        radii: Certified radii, shape (N,).
        at: Values of r, at least 0, shape (R,).

    Returns:
        Shares, shape (R,).

    Raises:
        InvalidInput: No images, or not as many radii; a negative r.
    """
    right, radii = _checked(right, radii)
    at = np.asarray(at, dtype=np.float64)
    if not (at >= 0).all():
        raise InvalidInput("certified accuracy is asked at radii of 0 or more.")
    shares: Floats = (right[:, None] & (radii[:, None] >= at)).mean(0)
    return shares


def average_certified_radius(right: npt.ArrayLike, radii: npt.ArrayLike) -> float:
    """ACR. See :func:`certified_accuracy`."""
    right, radii = _checked(right, radii)
    return float(np.where(right, radii, 0.0).mean())


def _checked(right: npt.ArrayLike, radii: npt.ArrayLike) -> tuple[npt.NDArray[np.bool_], Floats]:
    right, radii = np.asarray(right, dtype=np.bool_), np.asarray(radii, dtype=np.float64)
    if right.ndim != 1 or right.shape != radii.shape or len(right) == 0:
        raise InvalidInput(f"certified accuracy takes one radius for each image, not {radii.shape} of {right.shape}.")
    return right, radii


@dataclass(frozen=True)
class CertifiedSummary:
    """One line of a table of certified accuracy.

    Arguments:
        sigma: Standard deviation of the noise.
        radii: The values of r.
        accuracy: Certified accuracy at each of them.
        natural: Certified accuracy at r = 0.
        acr: Average certified radius.
        abstained: Share of images with an abstention.
        samples: Estimation samples per image on average.
        images: Number of images.
        alpha: Error probability of each certificate.
        rule: Their rule.
        guarantee: Their guarantee.
    """

    sigma: float
    radii: tuple[float, ...]
    accuracy: tuple[float, ...]
    natural: float
    acr: float
    abstained: float
    samples: float
    images: int
    alpha: float
    rule: Rule
    guarantee: Guarantee

    def lower(self, rho: float) -> tuple[float, ...]:
        """High-probability lower bound of certified accuracy at each r, each with error ``rho``."""
        return tuple(dataset_bound(share, self.images, self.alpha, rho) for share in self.accuracy)


def summarise(labels: Sequence[int], certificates: Sequence[Certificate], at: Sequence[float]) -> CertifiedSummary:
    """Return the summary of certificates with the same settings.

    Arguments:
        labels: Label of each image.
        certificates: Certificate of each image.
        at: Values of r.

    Raises:
        InvalidInput: No certificates, not as many labels, or certificates made in several ways.
    """
    if not certificates or len(labels) != len(certificates):
        raise InvalidInput(f"{len(labels)} labels of {len(certificates)} certificates; each image has both.")
    ways = {
        (certificate.sigma, certificate.alpha, certificate.rule, certificate.guarantee)
        for certificate in certificates
    }
    if len(ways) > 1:
        raise InvalidInput(
            f"certificates made in {len(ways)} ways, (sigma, alpha, rule, guarantee) = {sorted(ways)}: summarise "
            "each by itself."
        )
    sigma, alpha, rule, guarantee = ways.pop()
    right = np.array([c.prediction == label for c, label in zip(certificates, labels, strict=True)])
    right &= np.array([not certificate.abstains for certificate in certificates])
    radii = np.array([certificate.radius for certificate in certificates])
    return CertifiedSummary(
        sigma=sigma,
        radii=tuple(map(float, at)),
        accuracy=tuple(certified_accuracy(right, radii, at).tolist()),
        natural=float(right.mean()),
        acr=average_certified_radius(right, radii),
        abstained=sum(certificate.abstains for certificate in certificates) / len(certificates),
        samples=sum(certificate.n for certificate in certificates) / len(certificates),
        images=len(certificates),
        alpha=alpha,
        rule=rule,
        guarantee=guarantee,
    )


@dataclass(frozen=True)
class Envelope:
    """The best certified accuracy at each r, and the sigma that has it (the smallest of several).

    Arguments:
        radii: The values of r.
        accuracy: Certified accuracy at each of them.
        sigma: Where it comes from.
    """

    radii: tuple[float, ...]
    accuracy: tuple[float, ...]
    sigma: tuple[float, ...]


def envelope(summaries: Sequence[CertifiedSummary]) -> Envelope:
    """Return the upper envelope over sigma.

    Raises:
        InvalidInput: No summaries, or ones with other radii, numbers of images, alpha, rule or guarantee.
    """
    settings = {
        (summary.radii, summary.images, summary.alpha, summary.rule, summary.guarantee) for summary in summaries
    }
    if len(settings) != 1:
        raise InvalidInput(
            f"an envelope takes summaries that differ in sigma alone; these are of {len(settings)} kinds."
        )
    ordered = sorted(summaries, key=lambda summary: summary.sigma)
    shares = np.array([summary.accuracy for summary in ordered])
    best = shares.argmax(0)
    return Envelope(ordered[0].radii, tuple(shares.max(0).tolist()), tuple(ordered[i].sigma for i in best.tolist()))
