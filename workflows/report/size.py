"""Keep a page small enough to send around: below 5 MB, whatever the sweep.

The pieces of a page are listed from the most expendable on: images, files of figures, the data behind figures, folded
figures, the data behind tables, lines of tables. As many as necessary are left out; the page says which, and where
else they are. The size of a piece is an estimate; the limit holds for the page itself.
"""

import base64
import gzip
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

__all__ = ["MOST", "Piece", "data_uri", "fitted", "left_out"]

MOST = 5_000_000
"""Bytes of a page."""

_STEPS = 5
"""Bisections for the last piece that has to go; a page of 5 MB takes a second or two."""

_PLAIN = 100_000
"""Longer CSV files than this are gzipped: tables repeat themselves, and pandas reads both."""


@dataclass(frozen=True)
class Piece:
    """A part of a page that may be left out.

    Arguments:
        kind: What it is, in the singular; ``s`` makes the plural.
        place: Which one.
        size: About how many bytes it takes.
    """

    kind: str
    place: tuple[int | str, ...]
    size: int


def fitted(render: Callable[[frozenset[Piece]], str], pieces: Sequence[Piece], most: int = MOST) -> str:
    """Return the page, with as few pieces left out as make it fit.

    Arguments:
        render: The page without these pieces.
        pieces: What can be left out, the most expendable first.
        most: Bytes that it may have.
    """
    page, over, count = render(frozenset()), 0, 0
    while (excess := len(page.encode()) - most) > 0 and count < len(pieces):
        over, saved = count, 0
        while count < len(pieces) and saved < excess:
            saved += pieces[count].size
            count += 1
        page = render(frozenset(pieces[:count]))
    # Without `over` pieces it was too large and without `count` it fits; between them it depends on the estimates.
    for _ in range(_STEPS):
        middle = (over + count) // 2
        if middle == over:
            break
        tried = render(frozenset(pieces[:middle]))
        if len(tried.encode()) <= most:
            page, count = tried, middle
        else:
            over = middle
    return page


def left_out(out: Iterable[Piece]) -> str:
    """Return what is left out as a sentence; "" if nothing is."""
    counts = Counter(piece.kind for piece in out)
    if not counts:
        return ""
    what = ", ".join(f"{n:,} {kind}{'s' * (n > 1)}" for kind, n in counts.items())
    return (
        f"To stay below {MOST / 1e6:g} MB this page leaves out {what}. `puregrid tables SWEEP.yaml --format json` "
        "has every number, `puregrid report SWEEP.yaml --format md` every figure as SVG and CSV, and "
        "`puregrid report SWEEP.yaml --gallery 8` keeps images before anything else."
    )


def data_uri(text: str, kind: str) -> tuple[str, str]:
    """Return a file as a data URI, and the suffix of its name: ``.gz`` where it is gzipped for its length."""
    raw, suffix = text.encode(), ""
    if len(raw) > _PLAIN:
        raw, kind, suffix = gzip.compress(raw, 9, mtime=0), "application/gzip", ".gz"
    return f"data:{kind};base64,{base64.b64encode(raw).decode()}", suffix
