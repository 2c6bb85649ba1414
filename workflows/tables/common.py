"""The columns that tables share, declared once."""

import pandas as pd

from workflows.tables.table import Column, frame_only, several

__all__ = [
    "ATTACK",
    "CELL",
    "CLASSIFIER",
    "DATASET",
    "DEFENCE",
    "EPS",
    "GUARANTEE",
    "IMAGES",
    "INTERVALS",
    "NORM",
    "PLANNED",
    "SEED",
    "STOPPED",
    "intervals_note",
    "with_guarantee",
]

INTERVALS = "Accuracy in %, with Wilson's 95 % interval over images."
"""How accuracies are to be read, for the note of a table."""

_ANYTIME = (
    "Accuracy in %, with its confidence sequence at 95 % (by betting), which holds at whatever image a cell stops. "
    "Wilson's interval is narrower and holds at a number of images fixed beforehand: the two are not to be mixed."
)
_OF_IMAGES = (
    " It is of the accuracy on the images that the sweep names, had all been judged, and says nothing about others."
)


def intervals_note(frame: pd.DataFrame) -> str:
    """Return how accuracies of a frame are to be read: by its column ``guarantee``, if it has one."""
    guarantees = set(frame["guarantee"]) if "guarantee" in frame else set()
    if not any(guarantee.startswith("anytime") for guarantee in guarantees):
        return INTERVALS
    note = _ANYTIME + _OF_IMAGES * any(guarantee.endswith("images") for guarantee in guarantees)
    several = " Cells that may not stop have Wilson's; the column says which." if len(guarantees) > 1 else ""
    return note + several


def with_guarantee(columns: tuple[Column, ...], frame: pd.DataFrame) -> tuple[Column, ...]:
    """Return columns with those of the guarantee behind that of images, if the frame has them."""
    added = tuple(column for column in (STOPPED, GUARANTEE) if column.name in frame)
    place = next(i for i, column in enumerate(columns) if column.name == "images") + 1
    return (*columns[:place], *added, *columns[place:])


CELL = Column("cell", "cell", "text", "Id of the cell.", when=frame_only)
DATASET = Column("dataset", "dataset", "text", "Data set, by its name in the sweep.", when=several)
SEED = Column("seed", "seed", "integer", "Seed of all randomness.", when=several)
CLASSIFIER = Column("classifier", "classifier", "text", "The protected classifier.")
DEFENCE = Column("defence", "defence", "text", "The purifier before the classifier; none for the classifier alone.")
ATTACK = Column("attack", "attack", "text", "The attack, with its threat model; clean for none.")
NORM = Column("norm", "norm", "text", "Norm of the budget.")
EPS = Column("eps", "eps", "budget", "Budget of the attack; 0 for clean images.")
IMAGES = Column("images", "images", "images", "Images that were judged, of those that the sweep asks for.", drop=4)
STOPPED = Column(
    "stopped", "stopped", "text", "Why these are its images: precise enough, decided, all, or not yet.", drop=3
)
GUARANTEE = Column("guarantee", "guarantee", "text", "What the intervals of the line promise, and of what.", drop=9)
PLANNED = Column("planned", "planned", "integer", "Images that the sweep asks for.", when=frame_only)
