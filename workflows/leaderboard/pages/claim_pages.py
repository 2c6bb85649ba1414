"""The pages of claims: which survive, and one for each."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from workflows.leaderboard.board import Board
from workflows.leaderboard.claim_tables import claims_table, traps_table
from workflows.leaderboard.claims import Claim, trap
from workflows.leaderboard.pages.common import linked, rendered
from workflows.leaderboard.pages.figures import hidden_figure
from workflows.leaderboard.pages.sentences import claims_in_full, few_images, judged
from workflows.report.parts import grid_of
from workflows.tables.table import Table, records

__all__ = ["claim_page", "claims_page"]


def claims_page(board: Board, claims: Sequence[Claim]) -> str:
    """Render which claims survive in shape, and what the authors' attacks hid."""
    return rendered(
        "claims.html",
        title="Which claims survive",
        first=few_images(board),
        sentences=claims_in_full(board, claims),
        figure=hidden_figure(board),
        traps=_grid(traps_table(board.lines), "defence", "defences/{key}.html"),
        claims=_grid(claims_table(claims), "paper", "claims/{claim}.html"),
    )


def claim_page(claim: Claim) -> str:
    """Render a claim: what was claimed, what was measured, and what explains the difference."""
    traps = replace(traps_table(claim.lines), title="What the authors' attack hid here")
    settings = {line.entry.setting.name: line.entry.setting for line in claim.lines if line.entry.setting is not None}
    return rendered(
        "claim.html",
        title=f"{claim.value.defence}: {claim.value.accuracy:g} %",
        claim=claim,
        sentences=[judged(claim, line) for line in claim.lines],
        measured=_grid(
            replace(claims_table([claim]), title="What was measured"), "defence", "../defences/{key}.html"
        ),
        traps=_grid(traps, "defence", "../defences/{key}.html"),
        named=[(line.entry.label, text) for line in claim.lines if (text := trap(line))],
        settings=list(settings.values()),
        differs=[(line.entry.label, claim.differs(line)) for line in claim.lines],
    )


def _grid(table: Table, column: str, link: str) -> dict[str, Any] | None:
    """Return a table whose lines lead to pages, for a template; None without lines."""
    if table.frame.empty:
        return None
    return grid_of(table, lines=linked(table, column, [link.format(**row) for row in records(table.frame)]))
