"""Smoothing certificates from counts of classes: no network, no image, numpy and scipy only.

How the counts come about is the business of :mod:`defense.smoothing`. Nothing in here imports torch, and nothing in
here needs it. Python runs a package's parent first, though, and ``import defense`` loads torch for its other half: so
``import defense.certify`` costs what ``import defense`` costs, and where torch is missing this folder works under any
other parent that has ``defense.errors`` beside it.
"""

from defense.certify.bounds import (
    ceiling,
    cohen_dataset_bound,
    dataset_bound,
    lower_bound,
    radius,
    smallest_k,
    top_two_p_value,
    two_class_radius,
    upper_bound,
)
from defense.certify.certificate import ABSTAIN, ESTIMATE, SELECT, Certificate, Counts, certify, predict
from defense.certify.sequential import SequentialPlan, sequence_lower_bound
from defense.certify.table import average_certified_radius, certified_accuracy, envelope, summarise

__all__ = [
    "ABSTAIN",
    "ESTIMATE",
    "SELECT",
    "Certificate",
    "Counts",
    "SequentialPlan",
    "average_certified_radius",
    "ceiling",
    "certified_accuracy",
    "certify",
    "cohen_dataset_bound",
    "dataset_bound",
    "envelope",
    "lower_bound",
    "predict",
    "radius",
    "sequence_lower_bound",
    "smallest_k",
    "summarise",
    "top_two_p_value",
    "two_class_radius",
    "upper_bound",
]
