"""What a board comes to in sentences, made of its rows."""

import math
from collections.abc import Iterator, Sequence

from tasks.attacks.budgets import format_eps
from workflows.leaderboard.board import Board
from workflows.leaderboard.claims import Claim, hides, judged_by, shape, trap
from workflows.leaderboard.entries import Line
from workflows.leaderboard.numbers import Number
from workflows.tables.table import interval

__all__ = [
    "best",
    "budget",
    "claims_in_full",
    "claims_in_short",
    "few_images",
    "hidden_value",
    "judged",
    "missing_cells",
    "percent",
    "subtitle",
    "worth",
]

FEW = 1000
"""Of fewer images than these a board says so in its first line."""


def percent(number: Number) -> str:
    """Write a number in % with its interval."""
    return interval(number.value, number.low, number.high).replace(" [", " % [")


def budget(line: Line) -> str:
    """Write norm and budget."""
    return f"{line.norm} {format_eps(line.eps)}"


def _images(board: Board) -> dict[str, tuple[int, int]]:
    """Return the fewest and the most images behind the numbers of each data set."""
    ends: dict[str, tuple[int, int]] = {}
    for line in board.lines:
        for candidate in line.all_candidates():
            if candidate.counts:
                low, high = ends.get(line.entry.dataset, (candidate.number.images,) * 2)
                n = candidate.number.images
                ends[line.entry.dataset] = min(low, n), max(high, n)
    return ends


def few_images(board: Board) -> str:
    """Return the first line of a board of few images; empty for one of many."""
    few = {name: ends for name, ends in _images(board).items() if ends[0] < FEW}
    if not few:
        return ""
    counts = " and ".join(f"{_range(ends)} images of {name}" for name, ends in few.items())
    points = 98 / math.sqrt(min(low for low, _ in few.values()))
    return (
        f"A board of few images: {counts}. An interval is up to {points:.0f} points wide to either side, so that it "
        "shows the shape of things and no order of defences that are closer."
    )


def _range(ends: tuple[int, int]) -> str:
    return f"{ends[0]:,}" if ends[0] == ends[1] else f"{ends[0]:,} to {ends[1]:,}"


def missing_cells(board: Board) -> str:
    """Say how much of the sweeps is not there yet; empty where they are complete."""
    cells = [(source, cell) for source in board.sources for cell in source.sweep.cells]
    lacking = sum(not source.results.complete(cell) for source, cell in cells)
    if not lacking:
        return ""
    return f"Not complete: {lacking} of {len(cells)} cells of the sweeps lack images or rows; the board will change."


def subtitle(board: Board) -> str:
    """Say what a board is of."""
    data = ", ".join(f"{name} ({_range(ends)} images)" for name, ends in _images(board).items())
    defences = sum(not entry.bare for entry in board.entries)
    classifiers = list(dict.fromkeys(entry.classifier for entry in board.entries))
    before = classifiers[0] if len(classifiers) == 1 else _count(len(classifiers), "classifier")
    return f"{_count(defences, 'defence')} before {before} on {data} · {_count(len(board.sources), 'sweep')}"


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'s' * (n != 1)}"


def best(board: Board) -> Iterator[str]:
    """Say the best defence of each data set, at the largest budget of each norm."""
    seen = set()
    for line in board.lines:
        place, strongest = (line.entry.dataset, line.norm), line.number("strongest")
        if place in seen or strongest is None or line.entry.bare or not line.adaptive or line.struck:
            continue
        seen.add(place)
        clean = line.number("clean")
        text = f"On {line.entry.dataset} at {budget(line)}, {line.entry.label} keeps most: {percent(strongest)}"
        text += "" if clean is None else f" of {percent(clean)} on clean images"
        yield f"{text}, under {strongest.attack}."


def claims_in_short(board: Board, claims: Sequence[Claim]) -> Iterator[str]:
    """Say how many attacks hide something, and how many claims survive."""
    run = [line for line in board.lines if hides(line)]
    if run:
        hiding = [line for line in run if hides(line) == "hides"]
        yield (
            f"The attack of a defence's authors was run on {_count(len(run), 'line')}; on {len(hiding)} of them it "
            "hides more than 5 points of what another attack takes."
        )
    judged = _shapes(claims)
    if judged:
        number = {name: len(judged[name]) for name in _SHAPES}
        one = len({claim.key for pairs in judged.values() for claim, _ in pairs})
        together = sum(number.values())
        what = f"{_count(one, 'claim')} that can be compared here"
        if together > one:  # a claim stands on several lines
            what = f"{together} comparisons with {_count(one, 'claim')}"
        yield (
            f"Of {what}, {number['survives']} survive in shape, {number['falls']} fall and {number['open']} are "
            "open at so many images."
        )
    elif claims:
        yield "What was published of these defences cannot be compared with what was measured here."


_SHAPES = ("survives", "falls", "open")


def _shapes(claims: Sequence[Claim]) -> dict[str, list[tuple[Claim, Line]]]:
    """Return claims with the lines that they are compared with, by what became of them; empty without any."""
    pairs: dict[str, list[tuple[Claim, Line]]] = {name: [] for name in _SHAPES}
    for claim in claims:
        for line in claim.lines:
            if (verdict := shape(claim, line)) in pairs:
                pairs[verdict].append((claim, line))
    return pairs if any(pairs.values()) else {}


def claims_in_full(board: Board, claims: Sequence[Claim]) -> list[str]:
    """Say the same with the numbers behind it."""
    sentences = list(claims_in_short(board, claims))
    run = sorted((line for line in board.lines if line.hidden is not None), key=hidden_value, reverse=True)
    short = [line for line in run if (number := line.number("published")) is not None and number.departure.cut]
    if short:
        sentences.append(
            f"On {len(short)} of these lines their attack is shortened (fewer steps, draws or parts): in full it "
            "would leave less there, if anything, and hide less."
        )
    trapped = [line for line in run if trap(line)]
    if trapped:
        line = trapped[0]
        published, other = line.number("published"), line.number("other")
        assert published is not None and other is not None and line.hidden is not None
        points = interval(line.hidden.value, line.hidden.low, line.hidden.high, sign="+")
        sentences.append(
            f"Most is hidden of {line.entry.label}: {percent(published)} under its authors' attack, "
            f"{percent(other)} under {other.attack}, a difference of {points} points on the same "
            f"{line.hidden.images} images. {trap(line)}"
        )
        values = sorted(map(hidden_value, run))
        middle = (values[(len(values) - 1) // 2] + values[len(values) // 2]) / 2
        sentences.append(
            f"Over the {len(run)} lines the authors' attacks leave between {100 * values[0]:+.1f} and "
            f"{100 * values[-1]:+.1f} points more than the strongest other one; the median is {100 * middle:+.1f}."
        )
    for verdict, pairs in _shapes(claims).items():
        claimed: dict[str, dict[str, None]] = {}
        for claim, line in pairs:
            claimed.setdefault(line.entry.label, {})[f"{claim.value.accuracy:g}"] = None
        named = [f"{label} (claimed {', '.join(values)} %)" for label, values in claimed.items()]
        if named:
            sentences.append(f"{verdict[0].upper()}{verdict[1:]}: {'; '.join(named)}.")
    others = {claim.key for claim in claims for line in claim.lines if not claim.compares(line)}
    if others:
        sentences.append(
            f"{len(others)} of {_count(len(claims), 'claim')} are of other data or another budget: there, what the "
            "authors' attack leaves here stands for the claim."
        )
    return sentences


def hidden_value(line: Line) -> float:
    """Return what the authors' attack of a line hides."""
    return 0.0 if line.hidden is None else line.hidden.value


def worth(line: Line) -> str:
    """Say what a line keeps."""
    strongest, clean, published = (line.number(name) for name in ("strongest", "clean", "published"))
    if strongest is None:
        return "It was not attacked." if clean is None else f"Clean {percent(clean)}; it was not attacked."
    who = "an attacker who knows it" if line.adaptive else "static attacks alone, an upper bound,"
    text = f"At {budget(line)} it keeps {percent(strongest)} under {who} ({strongest.attack})"
    text += "" if clean is None else f", of {percent(clean)} clean"
    text += "" if published is None else f". The attack of its authors leaves {percent(published)}"
    lacking = "" if published is None else published.departure.sentence()
    text += f". {lacking[:-1]}" if lacking else ""
    struck = f" This does not count: {line.struck}" if line.struck else ""
    return f"{text}.{struck}"


def judged(claim: Claim, line: Line) -> str:
    """Say what became of a claim on a line."""
    strongest, published = line.number("strongest"), line.number("published")
    name = f"{line.entry.label}, {line.entry.classifier} on {line.entry.dataset}, {budget(line)}"
    if strongest is None:
        return f"{name}: not attacked."
    theirs = "" if published is None else f"{percent(published)} under the attack of its authors, "
    text = f"{name}: {theirs}{percent(strongest)} under the strongest attack ({strongest.attack})."
    lacking = "" if published is None else published.departure.sentence()
    text += f" {lacking}" if lacking else ""
    by = judged_by(claim, line) or "the claim"
    verdict = {
        "survives": f"The claim survives in shape: what is left is not more than 10 points below {by}.",
        "falls": f"The claim falls: what is left is more than 10 points below {by}, with its whole interval.",
        "open": f"Open at so many images: the interval reaches both sides of 10 points below {by}.",
        "not compared": "Not compared: other data or budget without the authors' attack, or it does not count.",
    }
    return f"{text} {verdict[shape(claim, line)]}"
