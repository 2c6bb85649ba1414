"""Findings of the auditor that a sweep file silences, each with its reason.

::

    silence:
      - rule: few-images
        reason: A smoke test; its figures are never quoted.
      - rule: only-static-attacks
        cells: {defence: diffpure}
        reason: The adaptive attacks on it are in the sweep digits-ladder.

A silenced finding is shown all the same, as silenced and with the reason. Neither ids nor rows depend on it.
"""

from collections.abc import Collection
from dataclasses import dataclass

__all__ = ["RULE_NAMES", "Silence"]

RULE_NAMES: tuple[str, ...] = (
    "above-chance-at-full-budget",
    "adaptive-weaker-than-static",
    "attack-beats-ladder",
    "attack-did-nothing",
    "attacked-above-clean",
    "autoattack-judged-once",
    "autoattack-standard",
    "autoattack-warning",
    "beats-bare-classifier",
    "black-box-beats-white-box",
    "bound-lifted",
    "bpda-beats-exact",
    "budget-not-used",
    "certified-above-attacked",
    "certified-above-clean",
    "clean-at-chance",
    "clean-below-card",
    "clean-below-chance",
    "clean-missing",
    "corrupted-above-clean",
    "defence-knows-eps",
    "depth-without-schedule",
    "draws-identical",
    "eot-of-one",
    "few-classes",
    "few-images",
    "fewer-steps",
    "generated-corruptions",
    "given-labels",
    "gradient-not-followed",
    "gradients-not-finite",
    "guidance-gradient-missing",
    "images-not-checked",
    "implausible-eps",
    "incomplete-benchmark",
    "judged-on-one-draw",
    "judged-otherwise",
    "loss-not-a-number",
    "losses-disagree",
    "no-gain-over-start",
    "norms-disagree",
    "not-converged",
    "not-monotone-in-eps",
    "nothing-changed",
    "one-class",
    "only-static-attacks",
    "outside-ball",
    "outside-range",
    "probe-failed",
    "published-attack-weaker",
    "radius-not-of-counts",
    "random-though-deterministic",
    "repeated-images",
    "rungs-not-judged",
    "sigma-t-star-mismatch",
    "single-step-beats-iterative",
    "step-size-too-large",
    "step-size-too-small",
    "surer-than-clean",
    "t-star-inconsistent",
    "too-few-samples",
    "trained-on-judged-images",
    "training-split",
    "zero-gradients",
)
"""Ids of all rules of the auditor that a sweep file can name: the audit stands on a higher floor, and a wrong name is
an error before anything runs. A test holds them to what the rules yield and to the auditor's page."""


@dataclass(frozen=True)
class Silence:
    """One entry.

    Arguments:
        rule: Id of the rule.
        reason: Why its finding is no concern here.
        cells: Ids of the cells that it may be about; None for all.
        place: Where it is written, for messages.
    """

    rule: str
    reason: str
    cells: frozenset[str] | None = None
    place: str = ""

    def covers(self, rule: str, cells: Collection[str]) -> bool:
        """Return whether a finding is meant: of this rule, and about these cells alone."""
        return rule == self.rule and (self.cells is None or self.cells.issuperset(cells))
