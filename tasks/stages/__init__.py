"""Stages: the steps of a cell, each with a content id, each a pure function of its spec and a chunk.

*attack* turns clean images into adversarial ones, *corrupt* into corrupted ones; *evaluate* judges a defence on fresh
draws of its randomness, *quality* measures what it does to images. *sample* and *sample-sequence* count the answers
of a smoothed classifier, *certify* makes certificates of the counts, *probe* asks whether a defence is the function
that it seems to be. A static attack on the bare classifier, or a
corruption, does not mention the defence, so all defences share it; an adaptive one holds the purifier, and one that
is made of the images of others (a ladder, a transfer) holds their stages. A stage's ``version`` is raised when the
results of its code change.
"""

from tasks.stages.attack import AttackStage
from tasks.stages.base import Chunk, Components, Output, StageSpec, images_from_table, images_to_table
from tasks.stages.certify import CertifyStage, SampleStage, SequenceStage, Smoothed
from tasks.stages.corrupt import CorruptStage
from tasks.stages.evaluate import EvaluateStage
from tasks.stages.probe import ProbeStage
from tasks.stages.quality import QualityStage
from tasks.stages.schemas import ROW_SCHEMAS

__all__ = [
    "ROW_SCHEMAS",
    "AttackStage",
    "CertifyStage",
    "Chunk",
    "Components",
    "CorruptStage",
    "EvaluateStage",
    "Output",
    "ProbeStage",
    "QualityStage",
    "SampleStage",
    "SequenceStage",
    "Smoothed",
    "StageSpec",
    "images_from_table",
    "images_to_table",
]
