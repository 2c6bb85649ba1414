"""The columns that tables share, declared once."""

from __future__ import annotations

from workflows.tables.table import Column, frame_only, several

__all__ = [
    "ATTACK",
    "CELL",
    "CLASSIFIER",
    "DATASET",
    "DEFENCE",
    "EPS",
    "IMAGES",
    "INTERVALS",
    "NORM",
    "PLANNED",
    "SEED",
]

INTERVALS = "Accuracy in %, with Wilson's 95 % interval over images."
"""How accuracies are to be read, for the note of a table."""

CELL = Column("cell", "cell", "text", "Id of the cell.", when=frame_only)
DATASET = Column("dataset", "dataset", "text", "Data set, by its name in the sweep.", when=several)
SEED = Column("seed", "seed", "integer", "Seed of all randomness.", when=several)
CLASSIFIER = Column("classifier", "classifier", "text", "The protected classifier.")
DEFENCE = Column("defence", "defence", "text", "The purifier before the classifier; none for the classifier alone.")
ATTACK = Column("attack", "attack", "text", "The attack, with its threat model; clean for none.")
NORM = Column("norm", "norm", "text", "Norm of the budget.")
EPS = Column("eps", "eps", "budget", "Budget of the attack; 0 for clean images.")
IMAGES = Column("images", "images", "images", "Images that were judged, of those that the sweep asks for.")
PLANNED = Column("planned", "planned", "integer", "Images that the sweep asks for.", when=frame_only)
