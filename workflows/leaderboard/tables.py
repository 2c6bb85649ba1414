"""The tables of a board: its lines, where each number is from, and the sweeps."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from tasks.attacks.budgets import format_eps
from workflows.audit import counts
from workflows.leaderboard.board import Board
from workflows.leaderboard.claims import Claim, claimed
from workflows.leaderboard.entries import Entry, Line
from workflows.leaderboard.numbers import Number
from workflows.tables.common import CLASSIFIER, DATASET
from workflows.tables.leaderboard import BUDGET, NORM_OF
from workflows.tables.table import Column, Row, Table, cells_of, frame_only, missing, several

__all__ = ["NAMES", "board_table", "identity", "known", "measured", "numbers_table", "sources_table"]

_ENDS = ("low", "high")
_NOTE = (
    "Accuracy in %, with its 95 % interval over images. Claimed: the published value, which leads to its page. As "
    "published: Avg under the attack of the defence's authors, measured here. Strongest: the lowest Avg under any "
    "attack here; Wor-M and vote: the lowest under any attack of right on each of M draws, and of the majority vote. "
    "Cost: network evaluations for one answer."
)


def known(frame: pd.DataFrame, name: str) -> bool:
    """Show a column where something is known."""
    return bool(frame[name].notna().any())


def measured(line: Line, names: Iterable[str]) -> dict[str, Any]:
    """Return numbers of a line with their ends, cells and sweeps, as columns."""
    found: dict[str, Any] = {}
    for name in names:
        number = line.number(name)
        found[name] = None if number is None else number.value
        found |= {f"{name}_{end}": None if number is None else getattr(number, end) for end in _ENDS}
        found[f"{name}_cell"] = "" if number is None else number.cell.id
        found[f"{name}_sweep"] = "" if number is None else number.source.name
    return found


_MEASURED = ("published", "strongest", "worst", "vote", "clean", "certified", "corruptions")


def identity(line: Line) -> dict[str, Any]:
    """Return what a line is of, as columns."""
    entry = line.entry
    return {
        "defence": entry.label,
        "dataset": entry.dataset,
        "classifier": entry.classifier,
        "denoiser": entry.denoiser,
        "norm": line.norm,
        "eps": line.eps,
        "key": entry.key,
    }


def board_table(board: Board, claims: Sequence[Claim]) -> Table:
    """Return the board, a row for each defence and budget."""
    rows = []
    for line in board.lines:
        claim = claimed(line, claims)
        strongest = line.number("strongest")
        used = [number for name in _MEASURED if (number := line.number(name)) is not None]
        published = line.number("published")
        certified = line.number("certified")
        rows.append(
            {
                **identity(line),
                "threat": "none" if strongest is None else "adaptive" if line.adaptive else "static only",
                "claimed": None if claim is None else claim.share,
                "claimed_of": "" if claim is None else _of(claim, line),
                **measured(line, _MEASURED),
                "shortened": "-" if published is None else "yes" if published.departure.cut else "no",
                "cut": "" if published is None else ", ".join(published.departure.cut),
                "radius": "" if certified is None else certified.detail,
                "evaluations": line.entry.evaluations,
                "images": min((number.images for number in used), default=0),
                "planned": max((number.planned for number in used), default=0),
                "attack": "" if strongest is None else strongest.attack,
                "findings": _tally(line.entry),
                "struck": line.struck,
            }
        )
    frame = pd.DataFrame(rows)
    return Table(
        "board", "Every defence", tuple(_columns(frame)), frame, _NOTE, remarks=tuple(_remarks(board, frame))
    )


def _of(claim: Claim, line: Line) -> str:
    """Say what a claim is of, where it is of other data or another budget."""
    if claim.compares(line):
        return ""
    return f"{claim.value.dataset} {format_eps(claim.value.column.eps or 0.0)}"


def _tally(entry: Entry) -> str:
    number = counts(finding for _, finding in entry.findings())
    said = [f"{n} {kind}{'s' * (n > 1 and kind != 'silenced')}" for kind, n in number.items() if n]
    return ", ".join(said) or "none"


def _columns(frame: pd.DataFrame) -> Iterator[Column]:
    at = ", ".join(text for text in frame["radius"].unique() if text) if len(frame) else ""
    yield Column("defence", "defence", "text", "The purifier before the classifier; none for the classifier alone.")
    yield DATASET
    yield replace(CLASSIFIER, when=several)
    yield Column("denoiser", "denoiser", "text", "Files of the denoisers.", when=several)
    yield NORM_OF
    yield BUDGET
    yield Column("threat", "threat", "text", "Whether an attack knew the defence.")
    meaning = "What was published; with the data and budget where these are other ones."
    yield Column("claimed", "claimed", "percent", meaning, when=known, show=_claimed)
    about: Mapping[str, tuple[str, str]] = {
        "published": ("as published", "Avg under the attack of its authors, measured here."),
        "strongest": ("strongest", "Lowest Avg under any attack, measured here."),
        "worst": ("Wor-M", "Lowest share of images right on each of M draws."),
        "vote": ("vote", "Lowest share of images right by the majority vote of the draws."),
        "clean": ("clean", "Avg on clean images."),
        "certified": (f"certified {at}".strip(), "Share of images certified right at that l_2 radius or more."),
        "corruptions": ("corruptions", "Mean accuracy over the common corruptions."),
    }
    for name, (title, text) in about.items():
        yield Column(name, title, "interval", text, when=known, cell=f"{name}_cell")
        if name == "published":
            meaning = "Whether the attack of its authors has less of something here; its page says of what."
            yield Column("shortened", "shortened", "text", meaning, when=_any_shortened)
    yield Column("evaluations", "cost", "count", "Network evaluations for one answer.", when=known)
    yield Column("images", "images", "images", "Fewest images behind a number of the line.", when=several)
    yield Column("findings", "findings", "text", "What the auditor found on its cells.")
    yield Column("attack", "strongest attack", "text", "The attack behind the lowest Avg.", when=frame_only)
    yield Column("cut", "cut", "text", "What the attack of its authors has less of here.", when=frame_only)
    yield Column("struck", "struck", "text", "Why the line does not count.", when=frame_only)
    yield Column("claimed_of", "claimed of", "text", "Other data or budget of the claim.", when=frame_only)
    yield Column("radius", "radius", "text", "The l_2 radius of `certified`.", when=frame_only)
    for name in _MEASURED:
        yield Column(f"{name}_cell", f"{name} cell", "text", f"Id of the cell of `{name}`.", when=frame_only)
        yield Column(f"{name}_sweep", f"{name} sweep", "text", f"The sweep that `{name}` is from.", when=frame_only)
    yield Column("key", "key", "text", "Id of the defence on this site.", when=frame_only)
    yield Column("planned", "planned", "integer", "Images that the sweep asks for.", when=frame_only)


def _any_shortened(frame: pd.DataFrame, name: str) -> bool:
    return bool((frame[name] == "yes").any())


def _claimed(row: Row) -> str:
    if missing(row["claimed"]):
        return "-"
    of = f" [{row['claimed_of']}]" if row["claimed_of"] else ""
    return f"{100 * row['claimed']:.1f}{of}"


def _remarks(board: Board, frame: pd.DataFrame) -> Iterator[str]:
    if _twice(board):
        yield (
            "Where several sweeps or seeds have the same defence (data, weights and settings by their hashes), each "
            "number is of the strongest kind of attack, then of the most images, then of the attack that took the "
            "most network evaluations. The page of the defence says from which sweep it is, and has the others."
        )
    if (frame["claimed_of"] != "").any():
        yield "A claim with brackets is of the data or the budget that they name, and no number of this line."
    if _any_shortened(frame, "shortened"):
        yield (
            "Shortened: the attack of its authors has fewer steps, draws or parts here and is the same in "
            "kind; in full it would leave less, if anything. The page of the defence says what was cut."
        )
    if (frame["threat"] == "static only").any():
        yield (
            "static only: nobody attacked it who knew it, so that its strongest is an upper bound that says nothing "
            "about such an attacker. These stand below the others."
        )
    if (frame["struck"] != "").any():
        yield "Struck through: the auditor says that a number of the line cannot be right. These lines do not count."


def _twice(board: Board) -> bool:
    return any(not candidate.counts for line in board.lines for candidate in line.all_candidates())


NAMES = {
    "clean": "clean",
    "published": "as published",
    "strongest": "strongest",
    "worst": "Wor-M",
    "vote": "vote",
    "other": "strongest other",
    "certified": "certified",
    "corruptions": "corruptions",
}
"""What numbers are called."""


def numbers_table(entry: Entry) -> Table:
    """Return every number of a defence with the sweep that it is from, those that do not count among them."""
    rows = []
    seen: set[tuple[str, int]] = set()
    for line in entry.lines:
        for candidate in line.all_candidates():
            number: Number = candidate.number
            if (key := (candidate.name, id(number))) in seen or (candidate.name == "other" and not line.hidden):
                continue
            seen.add(key)
            attacked = number.cell.attack is not None
            rows.append(
                {
                    "number": NAMES[candidate.name],
                    "eps": line.eps if attacked else 0.0,
                    "norm": line.norm if attacked else None,
                    "value": number.value,
                    "value_low": number.low,
                    "value_high": number.high,
                    "images": number.images,
                    "planned": number.planned,
                    "attack": ", ".join(filter(None, (number.attack, number.detail, _cut(number)))),
                    "evaluations": number.evaluations or None,
                    "sweep": number.source.name,
                    "counts": "yes" if candidate.counts else "no",
                    "cell": number.cell.id,
                }
            )
    columns = (
        Column("number", "number", "text", "What it is."),
        NORM_OF,
        Column(
            "eps", "eps", "budget", "Budget of the attack.", show=lambda r: format_eps(r["eps"]) if r["eps"] else "-"
        ),
        Column("value", "accuracy", "interval", "Share of right answers, with its 95 % interval."),
        Column("images", "images", "images", "Images that were judged."),
        Column("attack", "under", "text", "The attack, or what else was measured."),
        Column("evaluations", "attack's cost", "count", "Network evaluations of the attack, an image.", when=known),
        Column("sweep", "sweep", "text", "The sweep that it is from."),
        Column("counts", "on the board", "text", "Whether it is the one that counts.", when=several),
        Column("cell", "cell", "text", "Id of its cell.", when=frame_only),
        Column("planned", "planned", "integer", "Images that the sweep asks for.", when=frame_only),
    )
    frame = pd.DataFrame(rows)
    return Table("numbers", "Every number", columns, frame, cells=cells_of(frame), groups=("eps",))


def _cut(number: Number) -> str:
    """Say what the authors' attack has less of; empty for their attack in full, and for others."""
    return f"shortened: {', '.join(number.departure.cut)}" if number.departure.cut else ""


def sources_table(board: Board) -> Table:
    """Return the sweeps of a board."""
    rows = [
        {
            "number": source.number,
            "sweep": source.name,
            "id": source.sweep.id,
            "cells": len(source.sweep.cells),
            "complete": sum(map(source.results.complete, source.sweep.cells)),
            "findings": ", ".join(f"{n} {kind}s" for kind, n in counts(source.analysis.findings).items() if n)
            or "none",
            "command": source.command,
        }
        for source in board.sources
    ]
    columns = (
        Column("number", "no.", "integer", "Number of the sweep."),
        Column("sweep", "sweep", "text", "Its name; the link is its file."),
        Column("id", "id", "text", "Its content id."),
        Column("cells", "cells", "integer", "Cells of its grid."),
        Column("complete", "complete", "integer", "Cells that need no more images."),
        Column("findings", "findings", "text", "What the auditor found."),
        Column("command", "command", "text", "What computes it."),
    )
    return Table("sweeps", "Where the numbers are from", columns, pd.DataFrame(rows), groups=())
