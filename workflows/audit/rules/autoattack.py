"""Rules about AutoAttack's own output: its warnings, and its verdict beside that of the rows."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from workflows.audit.about import about
from workflows.audit.finding import Finding, Severity
from workflows.audit.view import View
from workflows.statistics.proportions import wilson

__all__ = ["autoattack_judged_once", "autoattack_warnings"]


class _Flag(NamedTuple):
    severity: Severity
    text: str
    action: str


_FLAGS = {
    "randomized": _Flag(
        "warning",
        "answers differ between calls of the defence, and this version is for deterministic ones.",
        "Use `version: rand`, or apgd with eot.",
    ),
    "softmax_output": _Flag(
        "warning",
        "the classifier seems to give probabilities instead of logits, of which losses vanish.",
        "Give logits: leave out the last softmax.",
    ),
    "zero_gradient": _Flag(
        "warning",
        "gradients are zero on some images: its gradient attacks have nothing to follow there.",
        "Use `gradient: bpda` through what has no derivative, or a loss that does not saturate.",
    ),
    "square_gain": _Flag(
        "warning",
        "its attack without gradients has found more than those with them, which is gradient masking.",
        "Check gradients against finite differences, and attack with more steps and another loss.",
    ),
    "dynamic": _Flag(
        "note",
        "the defence computes gradients while it answers, as guidance does.",
        "See that an attack follows the gradient through that too (`gradient: exact`).",
    ),
    "few_classes": _Flag(
        "note",
        "there are too few classes for one of its losses or its targets.",
        "Use `version: custom` with attacks that fit.",
    ),
}
_OTHER = _Flag("note", "there is a warning that puregrid does not know.", "Run the package by itself to read it.")
_PREFIX = "warning_"


def _autoattacks(all_views: Sequence[View]) -> Iterator[tuple[View, list[View]]]:
    """Return one view of each run of the package, with all the views whose images it made."""
    groups: dict[str, list[View]] = {}
    for view in all_views:
        if view.stage is not None and view.stage.attack.autoattack is not None:
            groups.setdefault(view.stage.id, []).append(view)
    for members in groups.values():
        yield members[0], members


def autoattack_warnings(all_views: Sequence[View]) -> Iterator[Finding]:
    """Warnings of AutoAttack's package, counted over the batches (Croce and Hein's ``flags_doc``).

    It looks for defences that it cannot judge: random ones, optimisation at inference, vanishing gradients, too few
    classes. That answers differ is no finding for its version ``rand``, which is made for that.
    """
    for view, members in _autoattacks(all_views):
        version = None if view.attack is None else view.attack.autoattack
        for name, count in sorted(view.attack_notes.items()):
            kind = name.removeprefix(_PREFIX)
            if kind == name or (kind == "randomized" and version == "rand"):
                continue
            flag = _FLAGS.get(kind, _OTHER)
            yield about(
                "autoattack-warning",
                flag.severity,
                members,
                f"AutoAttack warns: {flag.text}",
                {f"{_PREFIX}{kind}": int(count), "accuracy": view.accuracy},
                flag.action,
            )


def autoattack_judged_once(all_views: Sequence[View]) -> Iterator[Finding]:
    """The package's own robust accuracy of a random defence, beside that of fresh draws.

    It asks the defence once after each attack and never again, so that every unlucky draw counts as broken, those on
    clean images included, and no lucky one is found out. Neither figure contains the other: this one is of the draws
    that happened, the rows' is of draws that the attack has not seen.
    """
    for view, members in _autoattacks(all_views):
        broken = view.reported("broken")
        if not view.stochastic or view.static or broken is None or len(broken) == 0:
            continue
        if view.cell.defence.until is not None:  # the mean over draws is not known
            continue
        own = float(1 - broken.mean())
        low, high = wilson(view.accuracy, len(view.correct))
        yield about(
            "autoattack-judged-once",
            "note",
            members,
            f"AutoAttack itself reports {100 * own:.1f} % robust accuracy, judged on single draws; on "
            f"{view.correct.shape[1]} fresh draws per image it is {100 * view.accuracy:.1f} %.",
            {"reference": own, "judged_again": view.accuracy, "low": low, "high": high, "images": len(broken)},
            "Report the figure on fresh draws, and say so.",
        )
