"""The figures of a board."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from workflows.leaderboard.board import Board
from workflows.leaderboard.claim_tables import traps_table
from workflows.leaderboard.claims import Claim, claimed
from workflows.leaderboard.entries import Line
from workflows.leaderboard.pages.sentences import budget, hidden_value, percent
from workflows.leaderboard.tables import board_table
from workflows.report.charts import Mark, Point, forest_chart, ranked_chart
from workflows.report.parts import drawn
from workflows.tables.table import interval

__all__ = ["figures", "hidden_figure"]

_DRAWN, _FIGURES = 14, 4
"""Defences of a figure, and figures, at most."""

_PARTS: tuple[Callable[[Line], str], ...] = (
    lambda line: line.entry.classifier,
    lambda line: line.entry.dataset,
    budget,
)
"""What a name says beside the defence, where it differs between lines."""

_KINDS = ("claimed", "as published", "strongest", "clean")


def figures(board: Board, claims: Sequence[Claim]) -> Iterator[dict[str, Any]]:
    """Yield a figure for each data set and budget: what is left of each defence."""
    groups: dict[tuple[Any, ...], list[Line]] = {}
    for line in board.lines:
        if line.number("strongest") is not None and not line.struck:
            groups.setdefault((line.entry.dataset, line.norm, line.eps), []).append(line)
    # A picture of one defence shows no more than its line; of several budgets those with the most defences are drawn.
    large = [members for members in groups.values() if len(members) > 1] or list(groups.values())[:1]
    for number, members in enumerate(large[:_FIGURES], 1):
        several = len({line.entry.classifier for line in members}) > 1
        shown = members[:_DRAWN]
        lines = [(line.entry.label + f", {line.entry.classifier}" * several, _marks(line, claims)) for line in shown]
        caption = f"{shown[0].entry.dataset}, {budget(shown[0])}"
        caption += f"; {len(members) - len(shown)} more are in the table" if len(members) > len(shown) else ""
        drawing = ranked_chart(f"accuracy of each defence: {caption}", _KINDS, lines)
        frame = board_table(replace(board, lines=shown), claims).frame
        yield drawn(f"figure-{number}", "What is left of each defence", caption, drawing, frame)


def _marks(line: Line, claims: Sequence[Claim]) -> list[Mark]:
    marks = []
    claim = claimed(line, claims)
    if claim is not None and claim.compares(line):
        marks.append(Mark(0, *(claim.share,) * 3, f"{line.entry.label}, claimed: {claim.value.accuracy:g} %"))
    for kind, name in ((1, "published"), (2, "strongest"), (3, "clean")):
        number = line.number(name)
        if number is not None:
            note = f"{line.entry.label}, {_KINDS[kind]} ({number.attack}): {percent(number)}"
            marks.append(Mark(kind, number.value, number.low, number.high, note))
    return marks


def hidden_figure(board: Board) -> dict[str, Any] | None:
    """Return the figure of what the authors' attacks hid; None where none was run."""
    run = sorted((line for line in board.lines if line.hidden is not None), key=hidden_value, reverse=True)
    if not run:
        return None
    lines = []
    for line in run[: 2 * _DRAWN]:
        hidden = line.hidden
        assert hidden is not None
        name = ", ".join([line.entry.label, *(value(line) for value in _PARTS if len({*map(value, run)}) > 1)])
        points = interval(hidden.value, hidden.low, hidden.high, sign="+")
        lines.append((name, Point(0.0, hidden.value, hidden.low, hidden.high, f"{name}: {points} points")))
    drawing = forest_chart("what the authors' attacks hid", "as published minus strongest other, points", lines)
    caption = "Avg under the authors' attack minus that under the strongest other one, paired over the same images"
    return drawn("hidden", "What the authors' attacks hid", caption, drawing, traps_table(run).frame)
