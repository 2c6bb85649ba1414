"""The board as JSON in the form of RobustBench's model info, one file for each data set, norm and budget.

Fields that RobustBench has are called as there, and are texts in % as there: ``reported`` is a claim on the same data
at the same budget, ``autoattack_acc`` Avg under AutoAttack in full, ``external`` the lowest Avg under any other
attack, and ``unreliable`` says that the line does not count, or that the authors' attack hid more than five points.
What was not measured or is not known is null. What has no field there is in ``puregrid``: every number with its
interval, images, sweep and cell, what a shortened attack of authors lacks, and the specs with the digests of the
weights.

Source of the form: the files ``model_info/DATASET/THREAT/NAME.json`` of RobustBench.
"""

from collections.abc import Sequence
from typing import Any

from tasks.attacks import AutoAttackConfig
from tasks.attacks.budgets import format_eps
from workflows.leaderboard.board import Board
from workflows.leaderboard.claims import Claim, claimed, hides, trap
from workflows.leaderboard.entries import Line
from workflows.leaderboard.numbers import Number
from workflows.paper.bibliography import cited, fields

__all__ = ["files", "model_info", "reference"]

_THREATS = {"linf": "Linf", "l2": "L2", "l1": "L1", None: "clean"}
_NAMES = ("clean", "published", "strongest", "worst", "vote", "other", "certified", "corruptions")


def files(board: Board, claims: Sequence[Claim]) -> dict[str, list[dict[str, Any]]]:
    """Return the models of each file, by its path: ``cifar10/Linf-8_255/leaderboard.json``."""
    found: dict[str, list[dict[str, Any]]] = {}
    for line in board.lines:
        threat = _THREATS.get(line.norm, str(line.norm))
        budget = f"-{format_eps(line.eps).replace('/', '_')}" if line.norm else ""
        plain = "".join(c if c.isalnum() or c in "-_." else "-" for c in line.entry.dataset)
        path = f"{plain}/{threat}{budget}/leaderboard.json"
        found.setdefault(path, []).append(model_info(line, claims))
    return found


def model_info(line: Line, claims: Sequence[Claim]) -> dict[str, Any]:
    """Return a line as a model of RobustBench."""
    entry, purifier = line.entry, line.entry.cell.defence.purifier
    about, claim = reference(purifier.purifier), claimed(line, claims)
    autoattack = _under_autoattack(line)
    strongest, clean = line.number("strongest"), line.number("clean")
    hidden = line.hidden
    return {
        "link": about["link"] or None,
        "name": about["title"] or entry.label,
        "authors": about["authors"] or None,
        "additional_data": None,
        "number_forward_passes": None if entry.evaluations != entry.evaluations else round(entry.evaluations),
        "dataset": entry.dataset,
        "venue": about["venue"] or None,
        "architecture": f"{entry.classifier}, purifier {entry.label}",
        "eps": format_eps(line.eps) if line.norm else None,
        "clean_acc": _percent(clean),
        "reported": f"{claim.value.accuracy:.2f}" if claim is not None and claim.compares(line) else None,
        "autoattack_acc": _percent(autoattack),
        "external": _percent(strongest),
        "footnote": trap(line) or None,
        "unreliable": bool(line.struck) or hides(line) == "hides",
        "puregrid": {
            "id": entry.key,
            "defence": entry.label,
            "classifier": entry.classifier,
            "denoiser": entry.denoiser,
            "norm": line.norm,
            "threat": "none" if strongest is None else "adaptive" if line.adaptive else "static only",
            "struck": line.struck or None,
            "claim": None if claim is None else _claim(claim, line),
            "numbers": {name: _number(number) for name in _NAMES if (number := line.number(name)) is not None},
            "hidden": None
            if hidden is None
            else {"value": hidden.value, "low": hidden.low, "high": hidden.high, "images": hidden.images},
            "findings": [finding.as_dict() for _, finding in entry.findings()],
            "specs": {
                "dataset": entry.cell.images.dataset.identity(),
                "classifier": entry.cell.classifier.identity(),
                "purifier": purifier.identity(),
                "aggregation": entry.cell.defence.aggregation,
            },
        },
    }


def reference(purifier: str) -> dict[str, str]:
    """Return authors, title, venue and link of the paper of a purifier; empty texts for one of no paper."""
    keys = cited([purifier])
    return fields(keys[0]) if keys else dict.fromkeys(("authors", "title", "venue", "link"), "")


def _under_autoattack(line: Line) -> Number | None:
    """Return the lowest number under AutoAttack that a line has."""
    found = [
        number
        for numbers in line.candidates.values()
        for number in numbers
        if isinstance(attack := number.cell.attack, AutoAttackConfig) and not attack.shortened and not number.detail
    ]
    return min(found, key=lambda number: number.value, default=None)


def _percent(number: Number | None) -> str | None:
    return None if number is None else f"{100 * number.value:.2f}"


def _claim(claim: Claim, line: Line) -> dict[str, Any]:
    value = claim.value
    return {
        "paper": claim.paper.paper,
        "table": value.table,
        "accuracy": value.accuracy,
        "certainty": value.certainty,
        "source": value.source,
        "of": {"dataset": value.dataset, "classifier": value.classifier, "threat": value.column.label()},
        "compared": claim.compares(line),
    }


def _number(number: Number) -> dict[str, Any]:
    return {
        "value": number.value,
        "low": number.low,
        "high": number.high,
        "images": number.images,
        "under": number.attack,
        "shortened": list(number.departure.cut),
        "set_otherwise": list(number.departure.otherwise),
        "attack_evaluations": number.evaluations or None,
        "sweep": number.source.name,
        "sweep_id": number.source.sweep.id,
        "cell": number.cell.id,
    }
