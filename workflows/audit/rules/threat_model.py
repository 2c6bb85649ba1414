"""Rules about what was tried: threat models, draws, number of images. They look at specs, not at accuracies."""

import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from defense.denoisers import DenoiserConfig
from defense.schedules import SCHEDULES, get_schedule
from defense.spec import Spec
from tasks.attacks import AttackConfig
from workflows.audit.about import about
from workflows.audit.finding import Finding, Severity
from workflows.audit.view import Judged, View, group_by, strongest
from workflows.documents.authors import recognised
from workflows.documents.shortened import departure
from workflows.statistics.proportions import wilson

__all__ = [
    "autoattack_standard",
    "clean_missing",
    "depth_without_schedule",
    "few_images",
    "given_labels",
    "guidance_gradient_missing",
    "knows_eps",
    "one_draw_of_eot",
    "one_draw_of_judgement",
    "only_static",
    "published_attack_weaker",
    "t_star_inconsistent",
]

ENOUGH_IMAGES = 512
"""Half-width 4.3 points at accuracy 1/2; the smallest sample of the works that are compared with."""

_MORE = 0.05
"""Accuracy that the authors' attack may leave more than another one without a finding."""

_SAME = 1e-6
"""Relative difference of two noise levels that are the same; one step of any schedule is more."""

_LABEL_FIELD = re.compile(r"((use|uses|used|know|knows|true|given|oracle|with)_)?(labels?|oracle|ground_truth)")
_LABEL_VALUES = {"true-label", "true_label", "ground-truth", "ground_truth", "oracle-label"}


def _cells(members: Sequence[Judged]) -> tuple[str, ...]:
    return tuple(cell for view in members for cell in view.ids)


def one_draw_of_eot(all_views: Sequence[View]) -> Iterator[Finding]:
    """A gradient of one draw through a stochastic defence.

    Its variance hides the direction that works on average; the variance levels off near 64 draws, 10 are workable
    (Kassis et al., arXiv 2411.16598). Not so for an attacker who knows the draws. A note where an attack with more
    draws of equal budget stands beside it.
    """
    for members in group_by(all_views, "defended"):
        alone: list[View] = []
        beside: list[View] = []
        for same in group_by([v for v in members if v.followed and v.stochastic], "threat"):
            averaging = [view for view in same if any(attack.knows != "randomness" for attack in view.followed)]
            single = [view for view in averaging if all(attack.eot == 1 for attack in view.followed)]
            (alone if len(single) == len(averaging) else beside).extend(single)
        groups: tuple[tuple[Severity, list[View]], ...] = (("warning", alone), ("note", beside))
        for severity, attacks in groups:
            if (best := strongest(attacks)) is not None:
                yield Finding(
                    "eot-of-one",
                    severity,
                    _cells(attacks),
                    "The gradient of one draw stands for that of the mean over a stochastic defence's draws.",
                    {"eot": 1, "accuracy": best.accuracy, "attacks": len(attacks)},
                    "Set eot to 10 or more, and raise it until accuracy stays.",
                )


def one_draw_of_judgement(all_views: Sequence[View]) -> Iterator[Finding]:
    """A stochastic defence judged on one draw.

    One draw estimates the mean, but not what happens if an attacker submits again (Wor(M)), which is where
    purification loses most: DiffHammer (NeurIPS 2024) has 42.5 % on average and 22.7 % worst of 10.
    """
    for members in group_by(all_views, "defended"):
        if members[0].stochastic and members[0].cell.defence.draws == 1:
            yield Finding(
                "judged-on-one-draw",
                "warning",
                _cells(members),
                "The defence is random and each image is judged on one draw: how often it fails on the others is "
                "not known.",
                {"draws": 1},
                "Set draws to 10 or more, and report Wor-M beside Avg.",
            )


def autoattack_standard(all_views: Sequence[View]) -> Iterator[Finding]:
    """AutoAttack's ``standard`` (or ``plus``) version on a stochastic defence.

    Its authors made ``rand``, with EOT, for that: ``standard`` accepts a lucky draw as success and its APGD adapts
    its steps to noise (Croce and Hein, arXiv 2003.01690, and the flags of their code).
    """
    for view in all_views:
        attack = view.attack
        if attack is None or attack.static or not view.stochastic:
            continue
        if attack.autoattack in ("standard", "plus"):
            yield about(
                "autoattack-standard",
                "warning",
                (view,),
                "AutoAttack's standard version is made for deterministic models, and this defence is random.",
                {"accuracy": view.accuracy},
                "Use `version: rand`, or a fixed AutoAttack that judges each candidate on many draws.",
            )


def guidance_gradient_missing(all_views: Sequence[View]) -> Iterator[Finding]:
    """No attack on a guided purifier follows the gradient through its guidance.

    Guidance looks at the input in every step, so leaving it out of the gradient leaves out most of it: a relative
    error above 1e4 for GDMP (Kassis et al., arXiv 2411.16598). ``exact-no-guidance-path`` is an error unless the
    exact gradient stands beside it, where it is a demonstration; BPDA or a surrogate alone is a warning.
    """
    for members in group_by([view for view in all_views if view.followed and view.guided], "defended"):
        by_severity: dict[Severity, list[View]] = {"error": [], "warning": [], "note": []}
        for same in group_by(members, "threat"):
            exact = any("exact" in view.modes for view in same)
            dropped = [view for view in same if "exact-no-guidance-path" in view.modes]
            if dropped:
                by_severity["note" if exact else "error"].extend(dropped)
            elif not exact:
                by_severity["warning"].extend(same)
        for severity, blind in by_severity.items():
            if (best := strongest(blind)) is not None:
                does = "this gradient drops" if severity == "note" else "no gradient among the attacks follows"
                yield Finding(
                    "guidance-gradient-missing",
                    severity,
                    _cells(blind),
                    f"The purifier is guided, and {does} the path through its guidance.",
                    {"accuracy": best.accuracy, "attacks": len(blind)},
                    "Add the same attack with `gradient: exact`.",
                )


def published_attack_weaker(all_views: Sequence[View]) -> Iterator[Finding]:
    """The authors' own attack leaves more than another one on the same images: what it left out is named.

    The attacks of the published settings (``puregrid list published``) differentiate a surrogate of one step, leave
    the guidance out, fix the noise or attack another purifier. A difference above 5 points is worth a line, which
    says what a shortened one lacks too.
    """
    for members in group_by([view for view in all_views if view.attack is not None], "defended"):
        for same in group_by(members, "threat"):
            best = strongest(same)
            for view in same:
                if best is None or view.attack is None or view.accuracy - best.accuracy <= _MORE:
                    continue
                purifier, names = view.cell.defence.purifier, view.results.sweep.names
                setting = recognised(purifier, view.attack, names.get(purifier.id, ()))
                if setting is None:
                    continue
                lacking = " ".join(filter(None, [*setting.traps, departure(setting.attack, view.attack).sentence()]))
                yield Finding(
                    "published-attack-weaker",
                    "note",
                    _cells((view, best)),
                    f"The attack of the defence's authors leaves {100 * view.accuracy:.1f} %, another one "
                    f"{100 * best.accuracy:.1f} %. {lacking}",
                    {"accuracy": view.accuracy, "strongest": best.accuracy},
                    f"`puregrid list published {setting.name}` has its fields; report the other attack.",
                )


def knows_eps(all_views: Sequence[View]) -> Iterator[Finding]:
    """A defence that knows the attacker's budget.

    GDMP's scale is a function of it. A real defence does not know it, and at another budget than the assumed one the
    figure is another.
    """
    for members in group_by(all_views, "defended"):
        if members[0].cell.defence.purifier.knows_eps:
            budgets = {view.attack.eps for view in members if view.attack is not None}
            yield Finding(
                "defence-knows-eps",
                "warning",
                _cells(members),
                "The defence knows the attacker's budget, which a real one does not.",
                {"budgets": len(budgets)},
                "Use a rule without the budget (GDMP: `scale_rule: constant`), or attack at other budgets too.",
            )


def only_static(all_views: Sequence[View]) -> Iterator[Finding]:
    """A purifier that no attack knows of.

    Images made on the bare classifier are no evidence about an attacker who knows the defence: blind attacks leave
    DiffPure and GDMP near their clean accuracy, exact gradients halve it (Kassis et al.,
    arXiv 2411.16598). So it is an upper bound.
    """
    for members in group_by(all_views, "defended"):
        attacked = [view for view in members if view.attack is not None]
        best = strongest(attacked)
        if best is None:
            continue
        tried = [attack for view in attacked for attack in view.tried]
        if best.bare or not all(attack.static for attack in tried):
            yield from _gradient_not_followed(attacked, best, tried)
            continue
        yield Finding(
            "only-static-attacks",
            "warning",
            _cells(attacked),
            f"All attacks on this purifier are static: {100 * best.accuracy:.1f} % is an upper bound.",
            {"accuracy": best.accuracy, "attacks": len(attacked)},
            "Add attacks with `gradient: bpda`, `surrogate(K)` and `exact`, with eot 10 or more.",
        )


def _gradient_not_followed(attacked: Sequence[View], best: View, tried: Sequence[AttackConfig]) -> Iterator[Finding]:
    """No attack follows the gradient of what it attacks, or all put another in the place of a network's.

    What scores or noise find, or the gradient of something else, is an upper bound. (Guided purifiers have a rule of
    their own, and filters often a stand-in that is as good.)
    """
    purifier = best.cell.defence.purifier
    if all(attack.black_box or (attack.static and not best.bare) for attack in tried):
        what = "No attack follows a gradient of what it attacks"
    elif (
        purifier.differentiable
        and purifier.evaluations
        and not best.guided
        and not any(mode.startswith("exact") for view in attacked for mode in view.modes)
    ):
        what = "All attacks replace the purifier's gradient by another"
    else:
        return
    yield Finding(
        "gradient-not-followed",
        "warning",
        _cells(attacked),
        f"{what}: {100 * best.accuracy:.1f} % is an upper bound.",
        {"accuracy": best.accuracy, "attacks": len(attacked)},
        "Add pgd" + ("." if best.bare else " with `gradient: exact`."),
    )


def _as_precise_as_asked(view: Judged) -> bool:
    """Whether a cell stopped at so many images because its answer was precise enough by then."""
    return isinstance(view, View) and view.results.settled(view.cell)


def few_images(all_views: Sequence[Judged]) -> Iterator[Finding]:
    """Fewer than 512 images, with the half-width of the 95 % interval that this means."""
    for members in group_by(all_views, "images"):
        n = min(len(view.correct) for view in members)
        if n >= ENOUGH_IMAGES:
            continue
        small = [view for view in members if len(view.correct) < ENOUGH_IMAGES and not _as_precise_as_asked(view)]
        if not small:
            continue
        ends = [wilson(view.accuracy, len(view.correct)) for view in small]
        low, high = wilson(0.5, n)
        widest = max((b - a) / 2 for a, b in ends)
        yield Finding(
            "few-images",
            "note",
            _cells(small),
            f"{n} images: the 95 % interval reaches up to {100 * widest:.1f} points to either side.",
            {"images": n, "half_width": widest, "half_width_at_one_half": (high - low) / 2},
            f"Use {ENOUGH_IMAGES} images or more for a figure that is to be compared.",
        )


def clean_missing(all_views: Sequence[View]) -> Iterator[Finding]:
    """Attacked cells whose clean counterpart is not in the sweep: the loss of accuracy is unknown."""
    for members in group_by(all_views, "defended"):
        if all(view.attack is not None for view in members):
            yield Finding(
                "clean-missing",
                "note",
                _cells(members),
                "The sweep has no clean accuracy of this defence on the same images and draws.",
                {"attacked": len(members)},
                "Add `none` to the attacks.",
            )


def depth_without_schedule(all_views: Sequence[View]) -> Iterator[Finding]:
    """Rows with a t* but no abar.

    The index alone means nothing: t* = 470 is abar 0.105 on linear-1000 and 0.962 on cosine-4000.
    """
    for members in group_by(all_views, "defended"):
        rows = members[0].rows
        if not {"t_star", "abar"} <= set(rows.columns):
            continue
        bad = pd.notna(rows["t_star"]) & pd.isna(rows["abar"])
        if bool(bad.any()):
            yield Finding(
                "depth-without-schedule",
                "warning",
                _cells(members),
                "The rows carry a t* without its abar: a t* means nothing without its schedule.",
                {"t_star": float(rows["t_star"][bad].iloc[0]), "rows": int(bad.sum())},
                "Give the purifier a named schedule; `noise_level` must have abar and sigma_eq.",
            )


def t_star_inconsistent(all_views: Sequence[View]) -> Iterator[Finding]:
    r"""Rows whose t*, abar and sigma_eq do not belong together.

    abar is that of step t* of the schedule that the purifier names, and
    :math:`\sigma_{eq} = \frac12\sqrt{(1-\bar\alpha)/\bar\alpha}`. A triple in which they disagree is of a purifier
    that is one step off, or on another schedule than it names: its figure belongs to another t*.
    """
    for members in group_by(all_views, "defended"):
        rows = members[0].rows
        if rows.empty or not {"t_star", "abar", "sigma_eq"} <= set(rows.columns):
            continue
        t_star, abar, sigma = (rows[name].iloc[0] for name in ("t_star", "abar", "sigma_eq"))
        if pd.isna(abar):
            continue
        evidence = {"abar": float(abar), "sigma_eq": float(sigma)}
        implied = math.sqrt((1 - abar) / abar) / 2 if 0 < abar <= 1 else math.nan
        wrong = [] if math.isclose(implied, sigma, rel_tol=_SAME, abs_tol=_SAME) else ["sigma_eq"]
        if wrong:
            evidence["sigma_eq_of_abar"] = implied if math.isfinite(implied) else -1.0
        purifier = members[0].cell.defence.purifier
        name, denoiser = purifier.parameter("schedule"), purifier.parameter("denoiser")
        schedule = get_schedule(name) if isinstance(name, str) and name in SCHEDULES else None
        if isinstance(denoiser, DenoiserConfig) and denoiser.schedule == name:
            schedule = denoiser.noise_schedule
        if pd.notna(t_star) and schedule is not None:
            expected = float(schedule.abar[int(t_star)]) if 0 <= t_star <= schedule.steps else -1.0
            if not math.isclose(expected, abar, rel_tol=_SAME):
                wrong.append("abar")
                nearest = int(np.abs(schedule.abar - abar).argmin())
                evidence |= {"t_star": float(t_star), "abar_of_t_star": expected, "t_star_of_abar": nearest}
        if wrong:
            where = f"t* = {t_star} on {name}, " if "abar" in wrong else ""
            yield Finding(
                "t-star-inconsistent",
                "error",
                _cells(members),
                f"The rows have {where}abar {abar:.6g} and sigma_eq {sigma:.6g}, which do not belong together.",
                evidence,
                "Take the noise level from the schedule (`get_schedule(name).level(t_star)`), and check with which "
                "step the reverse chain starts.",
            )


def given_labels(all_views: Sequence[View]) -> Iterator[Finding]:
    """A purifier that is given the true label, by its config.

    Looked for by name in all its fields, those of its networks included: ``label``, ``labels``, ``true_label``,
    ``oracle``, ... with a value that is not false or nothing, or a value such as ``true-label``.
    """
    for members in group_by(all_views, "defended"):
        fields = sorted(_label_fields(members[0].cell.defence.purifier))
        if fields:
            yield Finding(
                "given-labels",
                "error",
                _cells(members),
                f"The purifier is given the answer: its config has {', '.join(fields)}.",
                {"fields": len(fields)},
                "Guide by the classifier's prediction, or by nothing; keep an oracle out of comparisons.",
            )


def _label_fields(config: Spec) -> set[str]:
    def walk(value: Any, path: str) -> Iterator[str]:
        if isinstance(value, dict):
            for key, inner in value.items():
                at = f"{path}.{key}" if path else str(key)
                if _LABEL_FIELD.fullmatch(str(key)) and inner not in (None, False, "none", "prediction"):
                    yield at
                yield from walk(inner, at)
        elif isinstance(value, list):
            for inner in value:
                yield from walk(inner, path)
        elif isinstance(value, str) and value in _LABEL_VALUES:
            yield path

    return set(walk(config.identity(), ""))
