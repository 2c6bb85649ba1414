"""The page of the board."""

from collections.abc import Sequence
from dataclasses import replace

from workflows.formats.html import Line, lines_of
from workflows.leaderboard.board import Board
from workflows.leaderboard.claims import Claim, claimed
from workflows.leaderboard.pages.common import linked, rendered
from workflows.leaderboard.pages.figures import figures, hidden_figure
from workflows.leaderboard.pages.sentences import best, claims_in_short, few_images, missing_cells, subtitle
from workflows.leaderboard.tables import NAMES, board_table, sources_table
from workflows.report.parts import grid_of
from workflows.tables.table import Table

__all__ = ["board_page"]


def board_page(board: Board, claims: Sequence[Claim], files: Sequence[str]) -> str:
    """Render the board."""
    table = board_table(board, claims)
    return rendered(
        "board.html",
        title="Leaderboard",
        first=few_images(board),
        missing=missing_cells(board),
        subtitle=subtitle(board),
        sentences=[*best(board), *claims_in_short(board, claims)],
        figures=[*figures(board, claims), *filter(None, [hidden_figure(board)])],
        board=grid_of(table, lines=_board_lines(table, board, claims)),
        sources=grid_of(sources_table(board), lines=_source_lines(board)),
        left_out=board.left_out,
        files=files,
    )


def _board_lines(table: Table, board: Board, claims: Sequence[Claim]) -> list[Line]:
    places = {column.name: place for place, column in enumerate(table.visible)}
    found = []
    for shown, line in zip(lines_of(table, ()), board.lines, strict=True):
        page = f"defences/{line.entry.key}.html"
        links = {places["defence"]: page, places["findings"]: f"{page}#findings"}
        claim = claimed(line, claims)
        if claim is not None:
            links[places["claimed"]] = f"claims/{claim.key}.html"
        errors = line.errors()
        struck = {places[name] for name in errors if name in places}
        if line.struck:
            struck = {place for name, place in places.items() if table.column(name).kind == "interval"}
        struck = {place for place in struck if shown.values[place] != "-"}
        why = line.struck or ", ".join(f"{NAMES[name]} is struck: {text}" for name, text in errors.items())
        found.append(replace(shown, links=links, struck=struck, why=why))
    return found


def _source_lines(board: Board) -> list[Line]:
    table = sources_table(board)
    return linked(table, "sweep", [f"sweeps/{source.file}" for source in board.sources])
