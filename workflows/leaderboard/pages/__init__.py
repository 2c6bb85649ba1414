"""The pages of a board: the board itself, what became of the claims, and one for each defence and each claim."""

from workflows.leaderboard.pages.board_page import board_page
from workflows.leaderboard.pages.claim_pages import claim_page, claims_page
from workflows.leaderboard.pages.defence_page import defence_page

__all__ = ["board_page", "claim_page", "claims_page", "defence_page"]
