r"""Rules about certificates: against the draws of the very classifier that was smoothed, and by themselves.

Draws of a defence are answers of a smoothed classifier where the defence adds the noise of the certificate and
nothing else that a certificate's sample does not have. For a ``bare`` certificate that is ``gaussian-noise`` with
that sigma, not clipped; for a ``denoised`` one it is the purifier at the t* of sigma, if it looks at nothing but the
noised image (``one-shot``, ``densepure``, ``diffpure``). Draws of DensePure share their forward noise, so that all of
them together are one answer.

The level of a purifier has slightly more noise than the certificate. Where the classes are divided by a hyperplane,
the case in which a radius is tight, that turns :math:`\Phi(m/\sigma)` into :math:`\Phi(m/\sigma_{eq})`, which is what
is tested; levels more than 5 % above sigma are not compared.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, ndtri

from defense.aggregate import majority_vote
from defense.certify import ABSTAIN, lower_bound, radius, two_class_radius, upper_bound
from defense.purifiers.densepure import DensePureConfig
from defense.purifiers.diffpure import DiffPureConfig
from defense.purifiers.gaussian_noise import GaussianNoiseConfig
from defense.purifiers.one_shot import OneShotConfig
from tasks.attacks import AttackConfig
from workflows.audit.excess import LEVEL
from workflows.audit.finding import Finding
from workflows.audit.rules.certificate_test import CertificateTest, certificate_test
from workflows.audit.view import Certified, View

__all__ = ["noise_level_mismatch", "radius_of_counts", "refuted_by_draws", "too_few_samples"]

Floats = npt.NDArray[np.float64]

COARSE = 0.05
"""How far the noise of a level may be above that of the certificate, as a share of it."""

NEAR_CEILING, MANY = 0.02, 0.2
"""A radius this close to the ceiling is limited by it, and this share of such radii is reported."""

_SAME = 1e-9
"""Relative difference of two values of one formula."""


def refuted_by_draws(all_certified: Sequence[Certified], all_views: Sequence[View]) -> Iterator[Finding]:
    """Draws of the smoothed classifier itself are wrong where its certificate says they are not.

    ``certified-above-attacked`` looks at the images of attacks, each at the l_2 norm that it was moved by, whatever
    the norm of the attack's budget; ``certified-above-clean`` at the clean ones. The test is that of
    :mod:`workflows.audit.rules.certificate_test`. An attacker who knows the draws of the judgement is left out: a
    certificate bounds no single draw. Refutations no more frequent than wrong certificates may be are a note.
    """
    for certified in all_certified:
        judged = [(view, own) for view in all_views if (own := _answers(certified, view)) is not None]
        for view, (answers, noise) in judged:
            norms = np.zeros(len(view.image_ids)) if view.attack is None else _norms(view)
            if norms is not None:
                yield from _compare(certified, view, answers, norms, noise, len(judged))


def _answers(certified: Certified, view: View) -> tuple[npt.NDArray[np.bool_], float] | None:
    """Return right answers of the certified classifier, shape (images, N), and their noise; None if it is another."""
    smoothed, purifier = certified.smoothed, view.cell.defence.purifier
    if certified.images != view.images or _knows_draws(view) or view.cell.defence.until is not None:
        return None
    if smoothed.base == "bare":
        same = isinstance(purifier, GaussianNoiseConfig) and not purifier.clip and purifier.sigma == smoothed.sigma
        return (view.correct, smoothed.sigma) if same else None
    level = purifier.noise_level
    if smoothed.base != "denoised" or purifier.id != smoothed.purifier.id or level is None:
        return None
    if level.sigma_eq > (1 + COARSE) * smoothed.sigma:
        return None
    if type(purifier) is DensePureConfig:
        vote = (majority_vote(view.predictions) == view.rows["label"].to_numpy())[:, None]
        return (vote, level.sigma_eq) if view.correct.shape[1] == smoothed.votes else None
    # One-shot denoising draws nothing after the noise, so that its votes agree.
    same = type(purifier) is OneShotConfig or (type(purifier) is DiffPureConfig and smoothed.votes == 1)
    return (view.correct, level.sigma_eq) if same else None


def _knows_draws(view: View) -> bool:
    attack = view.attack
    parts = () if attack is None else (attack, *(part for _, part in attack.parts()))
    return any(isinstance(part, AttackConfig) and part.knows == "randomness" for part in parts)


def _norms(view: View) -> Floats | None:
    """Return measured l_2 norms of the judged images' perturbations, NaN where there is none."""
    if "l2" not in view.attack_rows.columns:
        return None
    by_id = view.attack_rows.set_index("image_id")["l2"].reindex(view.image_ids)
    return by_id.to_numpy(dtype=np.float64)


def _compare(
    certified: Certified, view: View, answers: npt.NDArray[np.bool_], norms: Floats, noise: float, tests: int
) -> Iterator[Finding]:
    ids, i, j = np.intersect1d(certified.image_ids, view.image_ids, return_indices=True)
    answers, norms, far, right = answers[j], norms[j], certified.radius[i], certified.correct[i]
    covered = right & (far >= norms)
    if not covered.any():
        return
    config = certified.certificate
    # The radius of the two-class rule is half of two bounds: the bound of the label's own probability is p_lower.
    two = config.rule == "two-class"
    own = config.sigma * ndtri(certified.rows["p_lower"].to_numpy(dtype=np.float64)[i]) if two else far
    margin = (own - norms)[covered]
    q = ndtr(margin / np.where(margin > 0, noise, config.sigma))
    hits, draws = answers[covered].sum(1), answers.shape[1]
    test = certificate_test(hits, draws, q, len(ids), config.alpha, LEVEL, tests)
    if not test.failed and not test.refuted:
        return
    worst = covered.nonzero()[0][test.worst]
    voted = float((majority_vote(view.predictions[j]) == view.rows["label"].to_numpy()[j]).mean())
    attacked = view.attack is not None
    yield Finding(
        "certified-above-attacked" if attacked else "certified-above-clean",
        "error" if test.failed else "note",
        (*certified.ids, *view.ids),
        _verdict(test, float(hits.sum()) / (draws * len(hits)), attacked)
        + f" Certified accuracy {'at that distance ' if attacked else ''}is {100 * covered.mean():.1f} %, accuracy "
        f"of the same smoothed classifier by majority vote {100 * voted:.1f} %. Each certificate is wrong with "
        f"probability {config.alpha:g} at most: up to {len(ids) * config.alpha:.2g} of {len(ids)} are expected.",
        {
            "certified": float(covered.mean()),
            "attacked" if attacked else "clean": voted,
            "certificates": len(ids),
            "covered": test.covered,
            "refuted": test.refuted,
            "allowed": test.allowed,
            "expected_wrong": len(ids) * config.alpha,
            "p_together": test.together,
            "p": test.worst_p,
            "image": int(ids[worst]),
            "right": int(answers[worst].sum()),
            "draws": draws,
            "bound": float(q[test.worst]),
            "radius": float(far[worst]),
            "norm": float(norms[worst]),
        },
        "No perturbation within its radius beats a sound certificate. Check that its samples are of this classifier "
        "with this noise in [0, 1] pixels, that other samples bound the class than chose it, and the radius."
        if test.failed
        else "Nothing, as long as they are so few; raise n and lower alpha to be more certain.",
    )


def _verdict(test: CertificateTest, share: float, attacked: bool) -> str:
    where = "Within their radii, under attack," if attacked else "On clean images"
    text = (
        f"{where} {test.covered} certificates guarantee {100 * test.mean_bound:.1f} % right draws or more, and "
        f"{100 * share:.1f} % are right; the draws refute {test.refuted} certificates one by one"
    )
    if test.failed:
        return f"{text}, of which {test.allowed} may be by chance."
    return f"{text}, which may be by chance up to {test.allowed}."


def radius_of_counts(all_certified: Sequence[Certified], _: Sequence[View]) -> Iterator[Finding]:
    """A class or radius that is not that of the counts in its own row.

    Rows have the counts of both sets of samples, and all else follows from them by sigma, alpha, rule and guarantee.
    Where the number of samples is fixed all must be there: the bound holds for that number alone.
    """
    for certified in all_certified:
        rows, config = certified.rows, certified.certificate
        chosen = np.stack(rows["selection_counts"].to_list()).argmax(1)
        counts = np.stack(rows["counts"].to_list()).astype(np.int64)
        k, n = counts[np.arange(len(counts)), chosen], counts.sum(1)
        whole = n <= config.n if config.guarantee == "sequential" else n == config.n
        n = np.clip(n, 1, config.n)
        k = np.minimum(k, n)
        if config.rule == "two-class":
            p = lower_bound(k, n, config.alpha / 2)
            others = counts.copy()
            others[np.arange(len(counts)), chosen] = -1
            q = np.minimum(upper_bound(np.minimum(others.max(1), n), n, config.alpha / 2), 1 - p)
            far, decided = two_class_radius(p, q, config.sigma), p > q
        else:
            sequential = config.guarantee == "sequential"
            p = config.plan().lower_bound(k, n) if sequential else lower_bound(k, n, config.alpha)
            far, decided = radius(p, config.sigma), p > 0.5
        same = whole & (rows["prediction"].to_numpy() == np.where(decided, chosen, ABSTAIN))
        same &= np.isclose(certified.radius, far, rtol=_SAME, atol=_SAME)
        if same.all():
            continue
        first = int((~same).argmax())
        yield Finding(
            "radius-not-of-counts",
            "error",
            certified.ids,
            f"{int((~same).sum())} of {len(rows)} certificates do not follow from the counts in their rows.",
            {
                "images": int((~same).sum()),
                "of": len(rows),
                "image": int(certified.image_ids[first]),
                "radius": float(certified.radius[first]),
                "radius_of_counts": float(far[first]),
                "samples": int(counts[first].sum()),
            },
            "The rows come from several computations or from other code: certify again in a new store.",
        )


def noise_level_mismatch(all_certified: Sequence[Certified], _: Sequence[View]) -> Iterator[Finding]:
    """A purifier whose t* does not fit the noise of the certificate.

    The certificate is valid, and worse than it need be. A ``purified`` one whose t* is that of less noise than
    sigma leaves noise in the image that the purifier takes for content. A ``denoised`` one whose level is more than
    5 % above sigma makes the network expect noise that is not there.
    """
    for certified in all_certified:
        smoothed = certified.smoothed
        level, sigma = smoothed.purifier.noise_level, smoothed.sigma
        if level is None or smoothed.base == "bare":
            continue
        shallow = smoothed.base == "purified" and level.sigma_eq < sigma
        coarse = smoothed.base == "denoised" and level.sigma_eq > (1 + COARSE) * sigma
        if not shallow and not coarse:
            continue
        what = (
            f"The purifier's t* is that of noise {level.sigma_eq:.4g}, below the certificate's {sigma:.4g}: some "
            "of that stays in the image."
            if shallow
            else f"The lowest level with the certificate's noise {sigma:.4g} is that of {level.sigma_eq:.4g}: the "
            "schedule is too coarse there."
        )
        yield Finding(
            "sigma-t-star-mismatch",
            "warning",
            certified.ids,
            f"{what} The certificates are valid, and smaller than they need be.",
            {"sigma": sigma, "sigma_eq": level.sigma_eq, "certified": certified.accuracy},
            f"Use `base: denoised`, whose t* follows sigma, or a purifier of sigma_eq {sigma:.4g} or more."
            if shallow
            else "Use a schedule with more steps at that level, or a larger sigma.",
        )


def too_few_samples(all_certified: Sequence[Certified], _: Sequence[View]) -> Iterator[Finding]:
    r"""Radii that the number of samples holds down, and not the classifier.

    No n samples certify more than :math:`\sigma\Phi^{-1}(\underline p(n, n))`, which for one class is
    :math:`\alpha^{1/n}` in the brackets. Where more than a fifth of the right radii are within 2 % of that, the curve
    of certified accuracy falls there because the samples end. A sequential certificate has the ceiling of the number
    of samples at which it stopped.
    """
    for certified in all_certified:
        config, right = certified.certificate, certified.correct
        if not right.any():
            continue
        n = certified.rows["samples"].to_numpy(dtype=np.int64)[right]
        if config.guarantee == "sequential":
            p = config.plan().lower_bound(n, n)
        else:
            p = lower_bound(n, n, config.alpha / 2 if config.rule == "two-class" else config.alpha)
        top = radius(p, config.sigma)
        share = float((certified.radius[right] >= (1 - NEAR_CEILING) * top).mean())
        if share <= MANY:
            continue
        yield Finding(
            "too-few-samples",
            "note",
            certified.ids,
            f"{100 * share:.1f} % of the right certificates are within 2 % of the ceiling: no radius is above "
            f"{top.max():.4g} with so few samples, whatever the classifier.",
            {"share": share, "images": int(right.sum()), "ceiling": float(top.max()), "n": config.n},
            "Raise n where radii near the ceiling matter; it lowers none.",
        )
