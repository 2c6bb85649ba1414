"""One image as a page, and as a text: what the defence was given, and what each of its draws made of it."""

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from defense.text import in_one_line
from workflows.formats.text import table_text
from workflows.images import Pixels, Single, Stored, amplified, png, smaller
from workflows.images.pictures import LARGEST
from workflows.images.sixel import sixels_side_by_side
from workflows.images.terminal import side_by_side
from workflows.report.parts import environment, look
from workflows.tables.table import Column, Row, Table

__all__ = ["single_json", "single_page", "single_table", "single_text"]

_COLUMNS = (
    Column("draw", "draw", "integer", "Number of the draw, from 0."),
    Column("answer", "answer", "text", "The class that it answers."),
    Column("confidence", "confidence", "percent", "Probability of that class."),
    Column("label_probability", "true class", "percent", "Probability of the true class."),
    Column("right", "right", "text", "Whether the answer is right."),
    Column("stored", "in the store", "text", "The answer in the committed row.", show=lambda row: _stored(row)),
)


def _stored(row: Row) -> str:
    return row["stored"] or "-"


def single_table(found: Single) -> Table:
    """Return the draws as a table."""
    known = found.stored
    lines = [
        {
            "draw": draw.number,
            "answer": known.named(draw.answer),
            "confidence": draw.confidence,
            "label_probability": draw.label_probability,
            "right": "yes" if draw.answer == known.label else "no",
            "stored": "" if draw.stored is None else known.named(draw.stored),
        }
        for draw in found.draws
    ]
    names = [column.name for column in _COLUMNS]
    return Table("draws", "Draws", _COLUMNS, pd.DataFrame(lines, columns=names), "Confidence in %.", groups=())


def single_facts(found: Single) -> list[str]:
    """Return what is known of the image, a sentence each."""
    known = found.stored
    facts = [f"Image {known.image_id}, class {known.named(known.label)}."]
    if known.given is not None and known.linf is not None:
        facts.append(
            f"Largest change of a pixel {known.linf:.4g} ({255 * known.linf:.3g}/255), l_2 length of the change "
            f"{known.l2:.4g}, {100 * known.changed:.3g} % of the pixels changed."
        )
    if found.draws:
        right = sum(draw.answer == known.label for draw in found.draws)
        facts.append(f"{right} of {len(found.draws)} draws are right.")
    if known.certificate:
        facts.append(f"{known.certificate[0].upper()}{known.certificate[1:]}.")
    if known.broke:
        facts.append(f"{known.broke[0].upper()}{known.broke[1:]}.")
        rungs = "; ".join(
            f"{rung.attack} {'skipped' if rung.right is None else f'{100 * rung.right:.0f} %'}"
            for rung in known.rungs
        )
        facts.append(f"Right draws that each rung left, on the draws by which the ladder chose: {rungs}.")
    return [*facts, *found.remarks]


def _pictures(found: Single) -> list[tuple[str, str, Pixels]]:
    """Return title, what it shows, and pixels: original, given, the difference."""
    known = found.stored
    label = known.named(known.label)
    shown = [("original", f"original image {known.image_id}, class {label}", known.original)]
    if known.given is not None:
        change, factor = amplified(known.given - known.original)
        said = sorted({known.named(answer) for answer in known.answers})
        alt = f"{known.kind} image {known.image_id} of class {label}, answered {', '.join(said) or 'nothing yet'}"
        shown.append((known.kind, alt, known.given))
        alt = f"what was added to image {known.image_id}, {factor:g} times, grey where nothing changed"
        shown.append((f"{known.added} x{factor:g}", alt, change))
    return shown


def single_text(
    found: Single,
    width: int,
    *,
    colour: bool = False,
    true_colour: bool = True,
    sixel: tuple[int, int] | None = None,
) -> str:
    """Return the image for a terminal.

    Arguments:
        found: The image.
        width: Columns.
        colour: Whether images are drawn; without, they are described.
        true_colour: Whether the terminal has 24-bit colours.
        sixel: Pixels of a character, width and height, of a terminal that draws pixels; None for blocks.
    """
    known = found.stored
    lines = [in_one_line(known.title), ""]

    def beside(images: list[tuple[str, Pixels]], blocks: int, pixels: int) -> list[str]:
        if sixel is not None:
            return sixels_side_by_side(images, width, sixel, edge=pixels)
        return side_by_side(images, width, true_colour=true_colour, edge=blocks)

    if colour:
        lines += beside([(title, pixels) for title, _, pixels in _pictures(found)], 32, 160)
        draws = [
            (in_one_line(f"draw {d.number}: {known.named(d.answer)} {100 * d.confidence:.0f}%"), d.purified)
            for d in found.draws
        ]
        lines += beside(draws, 24, 160)
        for draw in found.draws:
            if draw.states:
                lines.append(f"draw {draw.number}, state by state")
                lines += beside([(name, _scaled(state)) for name, state in draw.states], 16, 96)
    else:
        lines.append(_described("original", known.original))
        if known.given is not None:
            lines += [_described(known.kind, known.given), _change_described(known)]
        for draw in found.draws:
            lines.append(_described(f"purified, draw {draw.number}", draw.purified))
            lines += [_described(f"  {name}", state) for name, state in draw.states]
        lines.append("")
    lines += [in_one_line(fact) for fact in single_facts(found)]
    text = "\n".join(lines) + "\n"
    return text + ("\n" + table_text(single_table(found), width=width) if found.draws else "")


def _described(title: str, pixels: Pixels) -> str:
    c, h, w = pixels.shape
    return (
        f"{title}: {w} x {h}{', grey' if c == 1 else ''}, mean {pixels.mean():.3f}, "
        f"from {pixels.min():.3f} to {pixels.max():.3f}"
    )


def _change_described(known: Stored) -> str:
    """Return what was added to an image: signed, in the units of images and of 8-bit levels, with its norms."""
    assert known.given is not None and known.linf is not None and known.l2 is not None
    change = np.asarray(known.given - known.original, dtype=np.float64)
    _, h, w = change.shape
    ends = [f"{value:+.4f} ({255 * value:+.1f}/255)" for value in (change.min(), change.max())]
    return (
        f"{known.added}: {w} x {h}, from {ends[0]} to {ends[1]}, mean {change.mean():+.4f}, "
        f"l_inf {known.linf:.4f} ({255 * known.linf:.1f}/255), l_2 {known.l2:.4g}, "
        f"{100 * known.changed:.1f} % of the pixels changed"
    )


def _scaled(state: Pixels) -> Pixels:
    """Return a state of a chain as an image: from its smallest to its largest value."""
    low, high = float(state.min()), float(state.max())
    return np.asarray((state - low) / ((high - low) or 1.0), dtype=np.float32)


def single_json(found: Single) -> dict[str, Any]:
    """Return everything but the pixels as plain JSON."""
    known = found.stored
    return {
        "cell": known.cell,
        "title": known.title,
        "image_id": known.image_id,
        "label": known.label,
        "class": known.named(known.label),
        "linf": known.linf,
        "l2": known.l2,
        "changed": None if known.given is None else known.changed,
        "rungs": [{"attack": rung.attack, "right": rung.right} for rung in known.rungs],
        "submitted": known.submitted,
        "certificate": known.certificate or None,
        "draws": [
            {
                "draw": draw.number,
                "prediction": draw.answer,
                "class": known.named(draw.answer),
                "confidence": draw.confidence,
                "label_probability": draw.label_probability,
                "stored": draw.stored,
            }
            for draw in found.draws
        ],
        "remarks": list(found.remarks),
    }


def single_page(found: Single, command: str, *, crumbs: Sequence[tuple[str, str]] = (), run: str = "") -> str:
    """Return the image as one HTML file.

    Arguments:
        found: The image.
        command: The command that makes it.
        crumbs: Addresses and texts of pages above it and beside it.
        run: Which run it is of, where there are several.
    """
    known = found.stored
    factor = -(-max(known.original.shape[1:]) // (2 * LARGEST))

    def uri(pixels: Pixels) -> str:
        return "data:image/png;base64," + base64.b64encode(png(smaller(pixels, factor))).decode()

    draws = [
        {
            "title": f"draw {draw.number}",
            "answer": known.named(draw.answer),
            "confidence": f"{100 * draw.confidence:.1f}",
            "label": f"{100 * draw.label_probability:.1f}",
            "wrong": draw.answer != known.label,
            "alt": f"purified image {known.image_id}, draw {draw.number}, answered {known.named(draw.answer)}",
            "uri": uri(draw.purified),
            "states": [(name, uri(_scaled(state))) for name, state in draw.states],
        }
        for draw in found.draws
    ]
    return (
        environment()
        .get_template("single.html")
        .render(
            **look(),
            scripted=False,
            title=f"image {known.image_id}",
            subtitle=f"{run}: {known.title}" if run else known.title,
            crumbs=crumbs,
            facts=single_facts(found),
            pictures=[(title, alt, uri(pixels)) for title, alt, pixels in _pictures(found)],
            draws=draws,
            label=known.named(known.label),
            command=command,
        )
    )
