"""Rules about budgets and steps: is the ball what was meant, and can the attack reach its edge?"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from tasks.attacks.budgets import format_eps
from workflows.audit.about import about, percent
from workflows.audit.finding import Finding
from workflows.audit.view import View, group_by

__all__ = ["budget_not_used", "fewer_steps", "implausible_eps", "step_size"]

GREY_LEVEL = 1 / 255

OF_LINF = 16 / 255
"""Largest budget that is usual in l_inf."""

USED = 0.5
"""Share of the radius that a maximising attack uses at least on half of the images that it could not break."""

SPARSE = 0.05
"""Share of the sum of changes that l_inf allows, likewise: even noise has half of it, and dark pixels cost a half."""

LEAST = 5
"""Images from which a median is taken."""

STILL = 1e-6
"""A perturbation below this is none."""


def implausible_eps(all_views: Sequence[View]) -> Iterator[Finding]:
    r"""A budget that is no number of its norm: larger than the image range, or smaller than a grey level.

    l_inf beyond 1 (l_2: :math:`\sqrt n`, l_1: n, for n pixel values) is more than the ball that holds every image:
    ``eps: 8`` where 8/255 was meant. Below half a grey level, 1/510, no pixel of an 8-bit image changes under l_inf;
    in l_2 and l_1 below 1/255 not one does: ``eps_255: 0.03`` where ``eps: 0.03`` was meant. Where no l_2 or l_1
    budget of the sweep is above 16/255, ``norm: linf`` was.
    """
    for members in group_by([view for view in all_views if view.attack is not None], "images"):
        pixels = float(np.prod(members[0].cell.images.dataset.image_shape))
        budgets = _by_budget(members)
        whole = {"linf": 1.0, "l2": float(np.sqrt(pixels)), "l1": pixels}
        for (norm, eps), views in budgets.items():
            if norm not in whole:
                continue
            limit, least = whole[norm], GREY_LEVEL / 2 if norm == "linf" else GREY_LEVEL
            if eps > limit * (1 + 1e-9):
                what = f"larger than the whole image range ({limit:.4g}); was {format_eps(eps)}/255 meant?"
            elif eps < least * (1 - 1e-9):
                what = f"below what an 8-bit image can show ({least:.4g}); was eps {255 * eps:.4g} meant?"
                limit = least
            elif norm != "linf" and max(other for its, other in budgets if its == norm) <= OF_LINF:
                what = f"no more than one of all pixels usually is ({format_eps(OF_LINF)}); was `norm: linf` meant?"
                limit = OF_LINF
            else:
                continue
            yield about(
                "implausible-eps",
                "warning",
                views,
                f"The budget {norm} {format_eps(eps)}, in units of [0, 1] pixels, is {what}",
                {"eps": eps, "eps_255": 255 * eps, "limit": limit},
                "Write `eps` in units of [0, 1] pixels or `eps_255` in grey levels.",
            )


def _by_budget(members: Sequence[View]) -> dict[tuple[str, float], list[View]]:
    groups: dict[tuple[str, float], list[View]] = {}
    for view in members:
        assert view.attack is not None
        groups.setdefault((view.attack.norm, view.attack.eps), []).append(view)
    return groups


def step_size(all_views: Sequence[View]) -> Iterator[Finding]:
    """A step size with which the attack cannot reach the edge of the ball, or can do nothing but jump across it.

    All steps together must be as long as the radius: ``steps * step_size >= eps``. In the other direction a step that
    is longer than the diameter 2 eps goes from edge to edge, and all between is never tried; with one step that is
    the method. Where no step size is given, it is 2.5 eps / steps.
    """
    groups: dict[str, list[View]] = {}
    for view in all_views:
        if view.attack is not None:
            groups.setdefault(view.attack.id, []).append(view)
    for views in groups.values():
        attack = views[0].attack
        assert attack is not None
        steps, size = attack.parameter("steps"), attack.parameter("step_size")
        if attack.norm not in ("linf", "l2", "l1") or not isinstance(steps, int) or not isinstance(size, float):
            continue
        if steps * size < attack.eps * (1 - 1e-9):
            rule, what = "step-size-too-small", "less than the radius: the edge of the ball cannot be reached"
        elif steps > 1 and size > 2 * attack.eps * (1 + 1e-9):
            rule, what = "step-size-too-large", "and each is longer than the ball is wide"
        else:
            continue
        yield about(
            rule,
            "warning",
            views,
            f"{attack.label()} at eps {format_eps(attack.eps)}: {steps} steps of {size:.4g} are {steps * size:.4g}, "
            f"{what}.",
            {"steps": steps, "step_size": size, "reach": steps * size, "eps": attack.eps},
            "Leave `step_size` out (it is then 2.5 eps / steps), or write it in units of [0, 1] pixels.",
        )


def budget_not_used(all_views: Sequence[View]) -> Iterator[Finding]:
    """The attack left images right and stayed far inside the ball.

    An attack that maximises a loss uses what it has: where it did not succeed, its image is near the edge. Looked at
    are images that were right before and are right still; those that were left as they are have a rule of their own
    (``attack-did-nothing``). A warning where the median of their norm is below half the radius (that of l_inf also
    where the sum of changes is below 5 % of what it allows). Searches for small perturbations are left out.
    """
    for views in _by_stage(all_views):
        view, attack = views[0], views[0].attack
        assert attack is not None
        if attack.norm not in ("linf", "l2", "l1"):
            continue
        rows, pixels = view.attack_rows, float(np.prod(view.cell.images.dataset.image_shape))
        left = view.right_before & (view.right_after > USED) & (rows["linf"].to_numpy() > STILL)
        if int(left.sum()) < LEAST:
            continue
        # Every pixel can move by a half, in one direction or the other.
        most = min(attack.eps, {"linf": 0.5, "l2": 0.5 * float(np.sqrt(pixels)), "l1": 0.5 * pixels}[attack.norm])
        used = _median(rows[attack.norm].to_numpy()[left]) / most
        spread = _median(rows["l1"].to_numpy()[left]) / (pixels * most) if attack.norm == "linf" else 1.0
        if (used >= USED and spread >= SPARSE) or _searches(view):
            continue
        what = f"{percent(used)} of the radius" if used < USED else f"{percent(spread)} of what all pixels may change"
        yield about(
            "budget-not-used",
            "warning",
            views,
            f"On the {int(left.sum())} images that it left right, the attack uses {what} (median).",
            {"used": used, "spread": spread, "images": int(left.sum()), "eps": attack.eps},
            "Take more or larger steps, and check what is projected and that perturbations are not scaled twice.",
        )


def _by_stage(all_views: Sequence[View]) -> Iterable[list[View]]:
    groups: dict[tuple[str, object], list[View]] = {}
    for view in all_views:
        if view.stage is not None and not view.attack_rows.empty:
            groups.setdefault((view.stage.id, view.images[:2]), []).append(view)
    return groups.values()


def fewer_steps(all_views: Sequence[View]) -> Iterator[Finding]:
    """Images that were left right have seen less than half as many gradients as the attack says steps.

    Its loop ends early, or some images are passed over: 5 % of them are enough where answers are certain.
    """
    for views in _by_stage(all_views):
        view, attack = views[0], views[0].attack
        assert attack is not None
        steps, asked = attack.parameter("steps"), view.reported("gradients")
        if view.ladder or asked is None or not isinstance(steps, int) or _searches(view):
            continue
        if attack.parameter("eot_by") == "cosine" or attack.parameter("abort_early"):
            continue
        left = view.right_before & (view.right_after > USED)
        if left.sum() < LEAST or not asked.any():
            continue
        # Where answers are certain, what is still right has been attacked to the end, each image of it.
        most = float(np.quantile(asked[left], 1 if view.stochastic else SPARSE))
        if most >= USED * steps:
            continue
        yield about(
            "fewer-steps",
            "warning",
            views,
            f"{attack.label()} says {steps} steps, and asked for {most:g} gradients at most on "
            f"{int((asked[left] <= most).sum())} of the {int(left.sum())} images that it left right.",
            {"gradients": most, "steps": steps},
            "Look for a loop that ends too early, and for images that are passed over.",
        )


def _searches(view: View) -> bool:
    """Whether the attack looks for a small perturbation, or for a broken image alone."""
    reported = (view.reported(name) for name in ("minimum_l2", "broken"))
    return any(column is not None for column in reported) or (
        view.attack is not None and view.attack.attack == "cw-l2"
    )


def _median(values: npt.NDArray[np.float64]) -> float:
    return float(np.median(values))
