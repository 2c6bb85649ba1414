"""Rules about accuracies that are in the wrong order.

An attacker may always submit what a weaker attacker has: the clean image, the image made on the bare classifier, the
one inside the smaller ball. So true robust accuracy is ordered, and a measured order that is reversed by more than
the noise of the images says that an attack has failed. These are the marks of gradient masking of Athalye et al.
(arXiv 1802.00420, section 3.1) and Carlini et al. (arXiv 1902.06705, section 4), tested on the same images by the
sign-flip test of :mod:`workflows.statistics.exact_tests` at p < .01.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from tasks.attacks.budgets import format_eps
from workflows.audit.about import about, percent
from workflows.audit.excess import (
    FAR_BELOW,
    LEVEL,
    Excess,
    common_images,
    count_comparison,
    exceeds,
    significant_excess,
)
from workflows.audit.finding import Finding
from workflows.audit.rules.budgets import LEAST
from workflows.audit.view import View, group_by, strongest
from workflows.statistics.proportions import wilson

__all__ = [
    "adaptive_weaker_than_static",
    "attacked_above_clean",
    "beats_bare_classifier",
    "black_box_beats_white_box",
    "bpda_beats_exact",
    "chance_at_full_budget",
    "losses_disagree",
    "not_converged",
    "not_monotone_in_eps",
    "nothing_changed",
    "single_step_beats_iterative",
    "surer_than_clean",
]

BUDGETS = ("steps", "iterations", "n_iter", "queries", "n_queries", "restarts", "n_restarts", "eot")
"""Fields that never weaken an attack when they grow."""

FAR = 0.1
"""An unusual difference of accuracies between losses."""

FEW = 0.05
"""Share of images whose answers change: an attack that breaks the bare classifier changes more."""

FALLEN = 0.3
"""What the budget must cost the bare classifier for that to mean something."""


def attacked_above_clean(all_views: Sequence[View]) -> Iterator[Finding]:
    """More accurate under attack than on clean images.

    The attacker may leave the image as it is, so robust accuracy is at most clean accuracy. Above it, the attack
    moves images towards their class (its loss has the wrong sign, or the labels leak into what it submits), or the
    two cells do not judge the same thing. It has happened in published tables.
    """
    for members in group_by(all_views, "defended"):
        clean = next((view for view in members if view.attack is None), None)
        for view in members:
            if clean is None or view is clean or (excess := exceeds(view, clean)) is None:
                continue
            yield about(
                "attacked-above-clean",
                "error",
                (view, clean),
                f"Accuracy is {percent(excess.higher)} under attack and {percent(excess.lower)} on the same images "
                "without it. An attacker can always leave an image as it is, so this attack failed.",
                excess.evidence("attacked", "clean"),
                "Check the sign of the attack's loss and whether labels reach the images that it submits.",
            )


def surer_than_clean(all_views: Sequence[View]) -> Iterator[Finding]:
    """An attack by gradients makes answers surer of the true class than they are on the clean image.

    The attacker may leave an image as it is. Sound attacks on a classifier, also short ones, raise the probability of
    the true class on next to no image; one whose loss has the wrong sign, label or target, whose gradients belong to
    other images or pixels, or that passes images over, raises it on many. Counted are images on which it changes at
    all (within what float32 resolves), and rises by more than 0.1 log odds; a warning where more than 2 % do
    (binomial test, p < .001). Behind a purifier 25 %: one draw of its gradient, or an identity in the place of a
    rounding, raises it on up to 19 % of them.
    """
    for members in group_by([view for view in all_views if view.judged], "defended"):
        clean = next((view for view in members if view.attack is None), None)
        for view in members:
            gradients = view.attack is not None and not view.black_box and (view.bare or view.followed)
            if clean is None or not gradients or view.cell.defence.until:
                continue
            i, j = common_images(view, clean)
            change = _log_odds(view)[i] - _log_odds(clean)[j]
            moved, risen = int((change != 0).sum()), int((change > 0.1).sum())
            if moved < LEAST:
                continue
            p = float(stats.binomtest(risen, moved, 0.02 if view.bare else 0.25, "greater").pvalue)
            if p < FAR_BELOW:
                yield about(
                    "surer-than-clean",
                    "warning",
                    (view, clean),
                    f"Under attack the probability of the true class changes on {moved} images and rises on {risen}. "
                    "An attacker can leave an image as it is.",
                    {"risen": risen, "changed": moved, "images": len(i), "p": p},
                    "Check sign, labels and target of the loss, and whether all images and pixels are attacked.",
                )


def _log_odds(view: View) -> npt.NDArray[np.float64]:
    """Of the true class, by its mean probability over draws."""
    p = np.stack(view.rows["label_probability"].to_list()).mean(1, dtype=np.float64).clip(1e-6, 1 - 1e-6)
    odds: npt.NDArray[np.float64] = np.log(p / (1 - p))
    return odds


def beats_bare_classifier(all_views: Sequence[View]) -> Iterator[Finding]:
    """A purified accuracy above that of the bare classifier on clean images: does the defence know the label?

    A purifier sees the image alone, and destroys some of it. It can give back what an attack took, hardly more than
    the classifier had on the untouched image. Significantly more, under attack, means that the answer comes from
    elsewhere: a label in the guidance, a look-up of test images. On clean images it is a warning: a purifier may
    remove noise that the classifier never learned to ignore. The bare classifier's clean answers come from its
    own cell, or else from the attack's rows.
    """
    for members in group_by(all_views, "images"):
        bare = next((view for view in members if view.bare and view.attack is None), None)
        for view in members:
            if view.bare or (excess := _above_bare(view, bare)) is None:
                continue
            attacked = view.attack is not None
            yield about(
                "beats-bare-classifier",
                "error" if attacked else "warning",
                (view,) if bare is None else (view, bare),
                f"Behind the purifier accuracy is {percent(excess.higher)} {'under attack' if attacked else 'clean'}"
                f", but the classifier alone has {percent(excess.lower)} on these images without any attack. What "
                "the purifier adds is not in the image: it may know the label.",
                excess.evidence("purified", "bare_clean"),
                "Look for labels, or images of the test set, in what the purifier and its guidance are given.",
            )


def _above_bare(view: View, bare: View | None) -> Excess | None:
    if bare is not None:
        return exceeds(view, bare)
    if view.attack_rows.empty:
        return None
    ids = view.attack_rows["image_id"].to_numpy()
    if len(ids) == len(view.image_ids) and (ids == view.image_ids).all():
        return significant_excess(view.correct, view.right_before[:, None], may_stop=view.may_stop)
    i, j = common_images(view, view, ids)
    return significant_excess(view.correct[i], view.right_before[j, None], may_stop=view.may_stop)


def adaptive_weaker_than_static(all_views: Sequence[View]) -> Iterator[Finding]:
    """An attack that knows the purifier is weaker than one that does not.

    Who knows the purifier can submit what was made on the bare classifier. If that is the stronger attack of the
    two, the gradient through the purifier, its draws or its steps are at fault, and the adaptive figure is not
    evidence. Published tables have this order. Each adaptive attack is compared with the strongest
    static one of equal norm and budget; it is an error if no adaptive attack is as strong as that, else a warning.
    """
    for members in group_by(all_views, "threat"):
        statics, adaptives = [v for v in members if v.blind], [v for v in members if v.adaptive]
        static, best = strongest(statics), strongest(adaptives)
        if static is None or best is None:
            continue
        for view in adaptives:
            if (excess := exceeds(view, static, len(statics))) is None:
                continue
            yield about(
                "adaptive-weaker-than-static",
                "error" if exceeds(best, static, len(statics) * len(adaptives)) else "warning",
                (view, static),
                f"The adaptive attack leaves {percent(excess.higher)} right, the static attack on the bare "
                f"classifier {percent(excess.lower)} at the same budget. Knowing more cannot weaken an attack.",
                excess.evidence("adaptive", "static"),
                "Use the exact gradient with more draws (eot) and more steps, or start from the static attack's "
                "images; report the minimum of both until then.",
            )


def black_box_beats_white_box(all_views: Sequence[View]) -> Iterator[Finding]:
    """An attack without gradients is stronger than every attack with them.

    A white-box attacker can do all that a black-box one does. If queries, transfer or noise alone find more, the
    gradients are masked (Athalye et al., arXiv 1802.00420, section 3.1), and the white-box figure is too good.
    White-box are the adaptive gradient attacks, and on a classifier without a purifier all gradient attacks.
    """
    for members in group_by(all_views, "threat"):
        white = [view for view in members if view.adaptive or (view.bare and _gradients(view))]
        for best, view, excess in _stronger([view for view in members if view.black_box], white):
            yield about(
                "black-box-beats-white-box",
                "error",
                (best, view),
                f"A black-box attack leaves {percent(excess.lower)} right, the strongest white-box attack "
                f"{percent(excess.higher)}. The gradients are masked or not followed far enough.",
                excess.evidence("white_box", "black_box"),
                "Check gradients against finite differences, raise eot and steps, try another loss (margin, dlr).",
            )


def bpda_beats_exact(all_views: Sequence[View]) -> Iterator[Finding]:
    """An attack that puts the identity in place of the purifier's gradient is stronger than the gradient itself.

    BPDA is for purifiers without a useful derivative. Where it does better than the exact one, that one is wrong,
    shattered, or drowned in the noise of too few draws (Athalye et al., arXiv 1802.00420, section 4.1), and the
    figure of the exact gradient says more about the attack than about the defence. A warning, since a report that
    takes the stronger of both has a figure.
    """
    for members in group_by(all_views, "threat"):
        exact = [view for view in members if view.adaptive and view.modes == {"exact"}]
        identities = [view for view in members if view.adaptive and view.modes == {"bpda"}]
        for best, view, excess in _stronger(identities, exact):
            yield about(
                "bpda-beats-exact",
                "warning",
                (best, view),
                f"With the identity in place of the purifier's gradient the attack leaves {percent(excess.lower)} "
                f"right, with the exact gradient {percent(excess.higher)}.",
                excess.evidence("exact", "bpda"),
                "Check the gradient against finite differences, and raise eot; report the stronger of both.",
            )


def single_step_beats_iterative(all_views: Sequence[View]) -> Iterator[Finding]:
    """One gradient step is stronger than many, at the same knowledge.

    Many small steps can do what one large step does; where they do worse the loss surface is masked or the step
    size is wrong (Athalye et al., arXiv 1802.00420, section 3.1).
    """
    for members in group_by(all_views, "threat"):
        known: dict[tuple[object, ...], list[View]] = defaultdict(list)
        for view in members:
            if view.attack is not None and _gradients(view):
                known[view.attack.knows, view.attack.gradient, view.attack.eot].append(view)
        for same in known.values():
            singles = [v for v in same if v.attack is not None and v.attack.single_step]
            for best, view, excess in _stronger(singles, [v for v in same if v not in singles]):
                yield about(
                    "single-step-beats-iterative",
                    "warning",
                    (best, view),
                    f"One step leaves {percent(excess.lower)} right, the best of many steps "
                    f"{percent(excess.higher)}.",
                    excess.evidence("iterative", "single_step"),
                    "Check the step size, and that iterates are kept by their loss.",
                )


def not_monotone_in_eps(all_views: Sequence[View]) -> Iterator[Finding]:
    """The same attack with a larger budget is weaker.

    The larger ball contains the smaller one, so accuracy cannot rise with eps. Each budget is compared with the
    smaller one of lowest accuracy; where an attack has several step sizes the strongest counts at each budget.
    """
    for members in group_by([view for view in all_views if view.attack is not None], "defended"):
        lines: dict[str, dict[float, View]] = defaultdict(dict)
        for view in members:
            assert view.attack is not None
            line = lines[_without(view, "eps", "step_size")]
            best = strongest([view, *([line[view.attack.eps]] if view.attack.eps in line else [])])
            assert best is not None
            line[view.attack.eps] = best
        for line in lines.values():
            budgets = sorted(line)
            for position, eps in enumerate(budgets[1:], start=1):
                lowest = min(budgets[:position], key=lambda budget: line[budget].accuracy)
                if (excess := exceeds(line[eps], line[lowest], position)) is None:
                    continue
                yield about(
                    "not-monotone-in-eps",
                    "error",
                    (line[lowest], line[eps]),
                    f"Accuracy is {percent(excess.lower)} at eps {format_eps(lowest)} and "
                    f"{percent(excess.higher)} at {format_eps(eps)}, whose ball contains the smaller one.",
                    {**excess.evidence("at_larger", "at_smaller"), "larger_eps": eps, "smaller_eps": lowest},
                    "Scale the step size with eps (leave it out, or 2.5 eps / steps) and take more steps.",
                )


def chance_at_full_budget(all_views: Sequence[View]) -> Iterator[Finding]:
    r"""Above chance where the attacker may submit any image at all.

    A ball of l_inf radius 1/2 (l_1: n/2 for n pixel values; l_2: half of its root) holds one grey image whatever its
    centre. The attacker can submit it for all, so no defence is above chance, 1 / classes (Carlini et al., arXiv
    1902.06705, section 4.3). One-sided binomial test of :math:`\lfloor\sum_i c_i/N\rfloor` successes, conservative
    for means over draws. For a static attack on a purifier this is a warning: it is an upper bound in any case.
    """
    for view in all_views:
        attack = view.attack
        if attack is None:
            continue
        pixels = float(np.prod(view.cell.images.dataset.image_shape))
        whole = {"linf": 0.5, "l2": float(np.sqrt(pixels)) / 2, "l1": pixels / 2}.get(attack.norm)
        if whole is None or attack.eps < whole:  # no flow or perceptual distance holds all images
            continue
        count_comparison()
        chance, n = 1 / len(view.cell.images.dataset.class_names), len(view.correct)
        p = float(stats.binomtest(int(view.correct.mean(1).sum() + 1e-9), n, chance, alternative="greater").pvalue)
        if p < LEVEL:
            yield about(
                "above-chance-at-full-budget",
                "error" if view.bare or view.black_box or view.followed else "warning",
                (view,),
                f"Accuracy is {percent(view.accuracy)} at eps {format_eps(attack.eps)}, where the attacker may "
                f"submit one grey image for all; chance is {percent(chance)}.",
                {"accuracy": view.accuracy, "chance": chance, "p": p, "images": n, "eps": attack.eps},
                "The attack does not work: check its gradients, step size and loss before any smaller budget counts.",
            )


def not_converged(all_views: Sequence[View]) -> Iterator[Finding]:
    """Accuracy still falls at the largest number of steps, queries, restarts or draws.

    Attacks that differ in one of these alone form a line. If its largest value is significantly stronger than the
    next smaller, more would probably be stronger still, and the figure is not the attack's limit.
    """
    for members in group_by([view for view in all_views if view.attack is not None], "threat"):
        for name in BUDGETS:
            lines: dict[str, dict[int, View]] = defaultdict(dict)
            for view in members:
                if isinstance(value := _field(view, name), int):
                    lines[_without(view, name)][value] = view
            yield from _still_falling(name, lines.values())


def _still_falling(name: str, lines: Iterable[dict[int, View]]) -> Iterator[Finding]:
    for line in lines:
        for less, more in list(pairwise(sorted(line)))[-1:]:
            if (excess := exceeds(line[less], line[more])) is not None:
                yield about(
                    "not-converged",
                    "warning",
                    (line[less], line[more]),
                    f"Accuracy falls from {percent(excess.higher)} at {name} {less} to {percent(excess.lower)} at "
                    f"{more}, the largest tried: the attack has not converged.",
                    {**excess.evidence("at_smaller", "at_larger"), "smaller": less, "larger": more},
                    f"Double {name} until accuracy changes by less than its interval.",
                )


def losses_disagree(all_views: Sequence[View]) -> Iterator[Finding]:
    """The same attack is far stronger with another loss.

    Cross-entropy has a vanishing gradient where logits are large: float32 has no probability between 1 - 6e-8 and 1.
    Margin and DLR do not suffer from the scale (Croce and Hein, arXiv 2003.01690, section 4, where a classifier whose
    logits are scaled up withstands cross-entropy alone). Some points between losses are usual; above 10 the weaker
    one has failed.
    """
    for members in group_by([view for view in all_views if _field(view, "loss")], "threat"):
        lines: dict[str, list[View]] = defaultdict(list)
        for view in members:
            lines[_without(view, "loss")].append(view)
        for same in lines.values():
            best = strongest(same)
            for view in same:
                if best is None or view is best or view.accuracy - best.accuracy <= FAR:
                    continue
                if (excess := exceeds(view, best, len(same))) is None:
                    continue
                yield about(
                    "losses-disagree",
                    "warning",
                    (view, best),
                    f"With loss {_field(view, 'loss')} the attack leaves {percent(excess.higher)} right, with "
                    f"{_field(best, 'loss')} {percent(excess.lower)}: the gradient of the weaker one vanishes or "
                    "leads astray.",
                    excess.evidence("weaker_loss", "stronger_loss"),
                    "Report the stronger one, and look at the scale of the logits.",
                )


def nothing_changed(all_views: Sequence[View]) -> Iterator[Finding]:
    """An attack that knows the purifier changes hardly an answer, and the bare classifier falls to the budget.

    A purifier whose output follows its input lets something through on some image. Where not one answer changes,
    the output may not depend on the image that was submitted: images of the test set that are looked up, by content
    or by their number, do this (and clean accuracy does not show it, for it is that of the bare classifier). That is
    an error. A warning, where answers change on fewer than 5 % of the images, with an interval that ends below 15 %,
    at a budget that costs the bare classifier 30 points or more: a memory of most test images, or an attack that does
    not reach the classifier.
    The bare classifier's accuracies come from its own cells, or else from the rows of a static attack.
    """
    for members in group_by(all_views, "images"):
        for same in group_by([view for view in members if view.judged], "defended"):
            clean = next((view for view in same if view.attack is None), None)
            for view in same:
                if clean is None or not view.followed or len(clean.image_ids) != len(view.image_ids):
                    continue
                moved = (clean.predictions != view.predictions).any(1)
                changed = float(moved.mean())
                # A share of a few images is no share: all that may be meant must be small.
                few = changed == 0 or (changed < FEW and wilson(changed, len(moved))[1] < 3 * FEW)
                fallen = _bare_falls(view, members) if few else None
                if fallen is None or (changed and fallen.higher - fallen.lower < FALLEN):
                    continue
                share = f"Answers changed on {percent(changed)} of" if changed else "No answer changed on any draw of"
                fell = f"from {percent(fallen.higher)} to {percent(fallen.lower)}"
                yield about(
                    "nothing-changed",
                    "warning" if changed else "error",
                    (view, clean),
                    f"{share} {len(view.image_ids)} images under attack, at a budget that takes the bare classifier "
                    f"{fell}. The answer may not depend on the image.",
                    {**fallen.evidence("bare_clean", "bare_attacked"), "changed": changed},
                    "Look for images of the test set, or their numbers, in what the purifier holds; try eps 1.",
                )


def _bare_falls(view: View, members: Sequence[View]) -> Excess | None:
    """Test whether the bare classifier loses accuracy at the budget of a view."""
    bare = [other for other in members if other.bare]
    clean = next((other for other in bare if other.attack is None), None)
    budget = view.threat[-2:]
    best = strongest([other for other in bare if other.attack is not None and other.threat[-2:] == budget])
    if clean is not None and best is not None:
        return exceeds(clean, best)
    static = [other for other in members if other.static and other.threat[-2:] == budget]
    by_rows = min(static, key=lambda other: float(other.right_after.mean()), default=None)
    if by_rows is None:
        return None
    before, after = by_rows.right_before[:, None], by_rows.right_after[:, None] > 0.5
    return significant_excess(before, after, len(static), may_stop=by_rows.may_stop)


def _stronger(attacks: Sequence[View], others: Sequence[View]) -> Iterator[tuple[View, View, Excess]]:
    """Yield the strongest of ``others`` with each of ``attacks`` that is stronger, and by how much."""
    best = strongest(others)
    for view in attacks:
        if best is not None and (excess := exceeds(best, view, len(attacks))) is not None:
            yield best, view, excess


def _gradients(view: View) -> bool:
    """Whether the attack follows gradients, and nothing else: a ladder has rungs that do not."""
    return view.attack is not None and not view.black_box and not view.ladder


def _field(view: View, name: str) -> Any:
    return None if view.attack is None else view.attack.parameter(name)


def _without(view: View, *names: str) -> str:
    """The attack's identity but for some fields."""
    assert view.attack is not None
    return json.dumps({k: v for k, v in view.attack.identity().items() if k not in names}, sort_keys=True)
