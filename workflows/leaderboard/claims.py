"""Published accuracies beside the lines of a board: what was claimed, what is left, and what the authors' attack hid.

Two questions are asked, and answered by fixed rules.

* **Does a claim survive in shape?** Networks differ, so a claim is compared with what the strongest attack leaves
  here on the same data at the same norm and budget, and a share below :data:`TOLERANCE` is no difference. On other
  data or at another budget, what the authors' attack leaves there stands for the claim, and is compared with the
  strongest other attack, paired over images. It *survives* if the interval of what is missing ends below that
  tolerance, *falls* if it begins above it, and is *open* in between.
* **What did the authors' attack hide?** The paired difference on the same images between what it leaves and what the
  strongest other attack leaves. It *hides* more than :data:`MORE` if the difference is above that and its interval
  above 0, is *as strong* if the upper end is not above it, and else it is *open*. From a difference above it on, what
  the attack leaves out is named.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from defense.spec import digest
from workflows.leaderboard.board import Board
from workflows.leaderboard.entries import Line
from workflows.published.match import comparable, differences, same_method
from workflows.published.papers import Paper, Published, load_paper, papers

__all__ = ["MORE", "TOLERANCE", "Claim", "claimed", "claims_of", "hides", "judged_by", "shape", "trap"]

TOLERANCE = 0.1
"""A share by which a claim may be missed, since networks and settings are others."""

MORE = 0.05
"""A share that the authors' attack may leave more than another one before what it leaves out is named."""

_CERTAINTY = ("read", "inferred", "second-hand")


@dataclass(frozen=True)
class Claim:
    """A published accuracy under attack, of a defence on the board.

    Arguments:
        key: Its id on the site.
        paper: The document that it is in.
        value: The accuracy and what is stated of it.
        lines: The lines of the defence in its norm.
    """

    key: str
    paper: Paper
    value: Published
    lines: tuple[Line, ...]

    @property
    def share(self) -> float:
        """The accuracy in [0, 1]."""
        return self.value.accuracy / 100

    @property
    def anomalies(self) -> list[str]:
        """What is odd in the table that it is from."""
        return [anomaly.text for anomaly in self.paper.anomalies if self.value.table in anomaly.tables]

    def compares(self, line: Line) -> bool:
        """Return whether a line has its data, norm and budget, whatever the networks."""
        strongest = line.number("strongest")
        return strongest is not None and comparable(self.value, strongest.cell)

    def differs(self, line: Line) -> list[str]:
        """List the settings of a line that are not those of the claim."""
        number = line.number("published") or line.number("strongest")
        return [] if number is None else differences(self.value, number.cell)


def claims_of(board: Board) -> list[Claim]:
    """Return the claims about defences of a board, paper by paper."""
    found = []
    for name in papers():
        paper = load_paper(name)
        for place, value in enumerate(paper.values):
            if value.column.threat != "attack":
                continue
            lines = tuple(
                line
                for line in board.lines
                if not line.entry.bare
                and line.norm == value.column.norm
                and same_method(value, line.entry.cell.defence.purifier, line.entry.named)
            )
            if lines:
                found.append(Claim(digest(f"{name} {place} {value}")[:10], paper, value, lines))
    return found


def claimed(line: Line, claims: Sequence[Claim]) -> Claim | None:
    """Return the claim that stands on a line: one that compares before others, then the surest, then the highest."""
    own = [claim for claim in claims if line in claim.lines]
    return min(
        own,
        key=lambda claim: (not claim.compares(line), _CERTAINTY.index(claim.value.certainty), -claim.value.accuracy),
        default=None,
    )


def judged_by(claim: Claim, line: Line) -> str:
    """Return what stands for a claim on a line: ``the claim``, ``the authors' attack``, or nothing, empty.

    Nothing can be said of a line that an attacker who knew it never met, or that does not count.
    """
    if not line.adaptive or line.struck:
        return ""
    if claim.compares(line):
        return "the claim"
    return "" if line.hidden is None or "published" in line.errors() else "the authors' attack"


def shape(claim: Claim, line: Line) -> str:
    """Return whether a claim survives on a line: ``survives``, ``falls``, ``open``, or ``not compared``."""
    strongest, hidden, by = line.number("strongest"), line.hidden, judged_by(claim, line)
    if by == "the claim" and strongest is not None:
        least, most = claim.share - strongest.high, claim.share - strongest.low
    elif by and hidden is not None:
        least, most = hidden.low, hidden.high
    else:
        return "not compared"
    return "survives" if most <= TOLERANCE else "falls" if least > TOLERANCE else "open"


def hides(line: Line) -> str:
    """Return what the authors' attack does on a line: ``hides``, ``as strong``, ``open``; empty if it was not run."""
    hidden = line.hidden
    if hidden is None:
        return ""
    if hidden.value > MORE and hidden.low > 0:
        return "hides"
    return "as strong" if hidden.high <= MORE else "open"


def trap(line: Line) -> str:
    """Return what the authors' attack leaves out, where it leaves more than another one; else empty."""
    hidden, setting = line.hidden, line.entry.setting
    return " ".join(setting.traps) if hidden is not None and setting is not None and hidden.value > MORE else ""
