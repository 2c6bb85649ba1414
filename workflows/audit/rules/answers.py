"""Rules about answers: chance, and whether a defence that claims to be certain, or random, is."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from workflows.audit.about import about, percent
from workflows.audit.excess import LEVEL, count_comparison
from workflows.audit.finding import Finding
from workflows.audit.view import View, group_by

__all__ = ["clean_at_chance", "draws_identical", "random_though_deterministic"]

ENOUGH = 20
"""Images from which an accuracy at chance is no accident of few images."""

TOLERATED = 0.02
"""Share of answers that may differ between two computations of the same: other batches round otherwise."""

OPEN = (1e-3, 1 - 1e-3)
"""Probabilities between which two draws with different noise differ in float32."""


def clean_at_chance(all_views: Sequence[View]) -> Iterator[Finding]:
    r"""Clean accuracy that is below chance, or no better.

    Significantly below 1 / classes (binomial test of :math:`\lceil\sum_i c_i/N\rceil` successes, p < 0.01) answers
    know the labels and name others: classes are numbered in another order, or labels belong to other images. An
    error. Not significantly above (p > 0.05, 20 images or more) there is nothing that an attack could take away: a
    warning.
    """
    for view in all_views:
        if view.attack is not None or view.cell.defence.until == "worst":  # of many draws one may well be wrong
            continue
        chance, n = 1 / len(view.cell.images.dataset.class_names), len(view.correct)
        right = float(view.correct.mean(1).sum())
        count_comparison()
        below = float(stats.binomtest(math.ceil(right - 1e-9), n, chance, alternative="less").pvalue)
        above = float(stats.binomtest(math.floor(right + 1e-9), n, chance, alternative="greater").pvalue)
        evidence = {"accuracy": view.accuracy, "chance": chance, "images": n}
        if below < LEVEL:
            yield about(
                "clean-below-chance",
                "error",
                (view,),
                f"Clean accuracy is {percent(view.accuracy)}, and chance is {percent(chance)}.",
                {**evidence, "p": below},
                "Compare the order of the classes of data set and classifier, and labels with images.",
            )
        elif above > 0.05 and n >= ENOUGH:
            yield about(
                "clean-at-chance",
                "warning",
                (view,),
                f"Clean accuracy is {percent(view.accuracy)} on {n} images, no better than chance "
                f"({percent(chance)}): what attacks leave of it means nothing.",
                evidence,
                "Check weights, normalisation and the range of the images; lower t*.",
            )


def random_though_deterministic(all_views: Sequence[View]) -> Iterator[Finding]:
    """Answers of a defence that claims to be certain differ between two looks at the same image.

    A ladder looks at the images that it submits, and the judge looks again; the bare classifier answers in the rows
    of static attacks, and again where it is judged. More than 2 % of other answers (and more than two) are no
    rounding: the defence draws random numbers without saying so, keeps state from call to call, depends on the other
    images of the batch, or treats the judge otherwise. One draw then stands for many, EOT is missing, and figures do
    not repeat.
    """
    for members in group_by([view for view in all_views if view.judged], "images"):
        for same in group_by([view for view in members if not view.stochastic], "defended"):
            apart = {view: found for view in same if (found := _twice(view, members)) is not None}
            wrong = {view: found for view, found in apart.items() if found[0] > max(2, TOLERATED * found[1])}
            if not wrong:
                continue
            differ, of = max(wrong.values())
            yield about(
                "random-though-deterministic",
                "error",
                list(wrong),
                f"The defence claims to be deterministic, but {differ} of {of} answers to the same images are other "
                "ones when it is asked again.",
                {"differ": differ, "of": of},
                "Declare it `stochastic` and take every random number from omega; look for dropout, state between "
                "calls, statistics over the batch, and `omega.role`.",
            )


def _twice(view: View, members: Sequence[View]) -> tuple[int, int] | None:
    """Count the answers that differ between the judge and the attack's own rows, and all that both have."""
    if view.ladder and "attack_right" in view.attack_rows:
        before = pd.Series(view.attack_rows["attack_right"].to_numpy() > 0.5, index=view.attack_rows["image_id"])
        return None if view.attack_rows["attack_right"].isna().any() else _apart(before, view.correct[:, 0], view)
    if not view.bare:
        return None
    if view.attack is not None:
        rows, column = view.attack_rows, "adversarial_prediction"
    else:
        other = next((one for one in members if not one.attack_rows.empty), None)
        rows, column = (pd.DataFrame() if other is None else other.attack_rows), "clean_prediction"
    if rows.empty:
        return None
    return _apart(pd.Series(rows[column].to_numpy(), index=rows["image_id"]), view.predictions[:, 0], view)


def _apart(before: pd.Series, judged: npt.NDArray[np.generic], view: View) -> tuple[int, int]:
    found = before.reindex(view.image_ids)
    known = found.notna().to_numpy()
    return int((found.to_numpy()[known] != judged[known]).sum()), int(known.sum())


def draws_identical(all_views: Sequence[View]) -> Iterator[Finding]:
    """All draws of a defence that claims to be random are the same.

    Its noise is fixed or seeded anew at each call. EOT then averages one draw, worst-of-M is that of one, and an
    attacker who learns the noise has a deterministic defence in front of him. Looked at is the probability of the
    true class, on images where it is neither 0 nor 1: five or more of them, and not one differs between draws.
    """
    for members in group_by([view for view in all_views if view.judged], "defended"):
        compared = 0
        for view in members if members[0].stochastic else []:
            probability = np.stack(view.rows["label_probability"].to_list())
            asked = ~np.isnan(probability)
            open_ = (~asked | ((probability > OPEN[0]) & (probability < OPEN[1]))).all(1) & (asked.sum(1) > 1)
            if (asked & (probability != probability[:, :1]))[open_].any():
                break
            compared += int(open_.sum())
        else:
            if compared >= 5:
                yield about(
                    "draws-identical",
                    "error",
                    members,
                    f"The defence claims to be random, but all its draws are equal on {compared} images.",
                    {"images": compared, "draws": members[0].cell.defence.draws},
                    "Take the noise from omega, and do not seed it anew; or declare the defence deterministic.",
                )
