"""Asking every distinct network, defence and attack of a sweep once, before anything is computed.

What raises on one image raises on all of them, unit by unit, on workers: here it is found in seconds, with its place
in the sweep file. What was asked is kept in the store, and not asked again.
"""

from workflows.preflight.asking import Answer, ask
from workflows.preflight.checks import Check
from workflows.preflight.choose import checks_of
from workflows.preflight.run import preflight

__all__ = ["Answer", "Check", "ask", "checks_of", "preflight"]
