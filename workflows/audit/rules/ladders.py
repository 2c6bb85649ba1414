"""Rules about ladders: their rungs beside the figure that the ladder has in the table.

A ladder submits the image that was worst of several attacks'. So its accuracy is at most that of each rung, on the
draws of the attacker as on those of the judge, but for the noise of the few draws by which it chose. Rungs themselves
go through the other rules like cells; what is here compares them with the ladder.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from tasks.attacks import LadderConfig
from workflows.audit.about import about, percent
from workflows.audit.excess import exceeds
from workflows.audit.finding import Finding
from workflows.audit.view import Rung, View, group_by, knows_rungs, rung_stages, strongest

__all__ = ["attack_beats_ladder", "judged_otherwise", "rungs_not_judged"]

APART = 0.1
"""Difference between a ladder and its own rung that a choice by few draws does not explain."""


def judged_otherwise(all_views: Sequence[View]) -> Iterator[Finding]:
    """A rung alone was far stronger on the draws of the attacker than the whole ladder is on those of the judge.

    The ladder submits the worst image of every rung, and the draws of both sides are of one law. So the judged
    accuracy can exceed that of a rung only by the luck of the choice. More than 10 points, significantly (p times the
    number of rungs), mean that the defence answers the judge otherwise than the attacker, or that the images that
    were judged are not those that were submitted.
    """
    for members in group_by(all_views, "threat"):
        for view in members:
            if not view.ladder:
                continue
            own = [rung for rung in members if isinstance(rung, Rung) and rung.compared and rung.ids == view.ids]
            best = strongest(own)
            if best is None or view.accuracy - best.accuracy <= APART:
                continue
            if (excess := exceeds(view, best, len(own))) is None:
                continue
            yield about(
                "judged-otherwise",
                "error",
                (view, best),
                f"The ladder leaves {percent(excess.higher)} right, as judged; one rung of it alone left "
                f"{percent(excess.lower)} on the draws by which the ladder chose.",
                excess.evidence("ladder", "rung"),
                "Look for a purifier that treats the judge otherwise (`omega.role`), keeps state between calls, or "
                "depends on gradients being on; and for images that were changed after the attack.",
            )


def attack_beats_ladder(all_views: Sequence[View]) -> Iterator[Finding]:
    """One attack of the sweep alone is stronger than the ladder.

    If the ladder holds that attack it cannot be weaker where answers are certain: an error. On a random defence the
    ladder chooses by few draws and may choose wrongly, and an attack that it does not hold may be better than all
    that it does: a warning in both cases, since the ladder's figure is not the lowest that is known.
    """
    for members in group_by(all_views, "threat"):
        singles = [view for view in members if view.judged and not view.ladder and view.attack is not None]
        best = strongest(singles)
        for view in members:
            if not view.ladder or best is None or view.stage is None:
                continue
            if (excess := exceeds(view, best, len(singles))) is None:
                continue
            held = best.stage is not None and best.stage.id in {stage.id for stage in rung_stages(view.stage)}
            assert best.attack is not None
            yield about(
                "attack-beats-ladder",
                "error" if held and not view.stochastic else "warning",
                (view, best),
                f"The ladder leaves {percent(excess.higher)} right, {best.attack.label()} alone "
                f"{percent(excess.lower)}{', although the ladder holds it' if held else ''}.",
                {**excess.evidence("ladder", "attack"), "held": float(held)},
                "Raise `select`, by which the ladder chooses."
                if held
                else "Add the attack to the ladder's rungs, and report the lower figure.",
            )


def rungs_not_judged(all_views: Sequence[View]) -> Iterator[Finding]:
    """Ladders whose rungs cannot be compared: rows of an older version, or rungs that skipped images.

    Rungs that skip see only images that the rungs before have left, so that their accuracy says nothing beside that
    of the others. Their gradients, images and budgets are looked at all the same.
    """
    for members in group_by(all_views, "defended"):
        ladders = [view for view in members if view.ladder and view.stage is not None]
        old = [view for view in ladders if not knows_rungs(view)]
        skipping = [view for view in ladders if view not in old and _skipped(view)]
        for group, why, action in (
            (old, "not judged: rows of an older version", "Run the sweep in a new store to have its rungs judged."),
            (skipping, "not compared: they skipped images", "Leave out `skip` to have all rungs on all images."),
        ):
            if group:
                yield about(
                    "rungs-not-judged",
                    "note",
                    group,
                    f"The rungs of this ladder are {why}.",
                    {"ladders": len(group)},
                    action,
                )


def _skipped(view: View) -> bool:
    assert isinstance(view.attack, LadderConfig)
    rights = np.stack(view.attack_rows["attack_rights"].to_list()).astype(np.float64)
    return bool(np.isnan(rights).any())
