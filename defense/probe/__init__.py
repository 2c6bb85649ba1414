"""Probe: is a defence a function that has the gradient it gives, and does what it says? In minutes, with numbers.

A probe runs a purifier or a classifier on a few images and compares: its gradient with central differences, its
answers with and without gradients, in other batches, under other labels of the same randomness, before and after many
calls; its outputs with the test set; its claims with what was counted. Nothing of a sweep is needed. Each
:class:`Check` has a measured number, a threshold and a reason for it (:data:`DEMANDS`); the numbers of the mechanism
have no verdict.

What it cannot see: a defence that waits for more calls than a probe makes, or that knows this code.
"""

from defense.probe.demands import DEMANDS
from defense.probe.record import Check, Probe
from defense.probe.run import IMAGES, probe_classifier, probe_purifier
from defense.probe.subject import Subject

__all__ = [
    "DEMANDS",
    "IMAGES",
    "Check",
    "Probe",
    "Subject",
    "probe_classifier",
    "probe_purifier",
]
