"""Findings about views: whose cells they are, and in which words a rung of a ladder is named."""

from collections.abc import Mapping, Sequence

from workflows.audit.finding import Finding, Severity
from workflows.audit.view import Judged, View

__all__ = ["about", "cells_of", "percent"]


def cells_of(members: Sequence[Judged]) -> tuple[str, ...]:
    """Return the ids of the cells of some views, each once."""
    return tuple(dict.fromkeys(cell for view in members for cell in view.ids))


def percent(value: float) -> str:
    """Return ``79.0 %``."""
    return f"{100 * value:.1f} %"


def about(
    rule: str, severity: Severity, members: Sequence[Judged], text: str, evidence: Mapping[str, float], action: str
) -> Finding:
    """Return a finding about some views; those of them that are rungs of a ladder are named behind the text."""
    names = dict.fromkeys(view.name for view in members if isinstance(view, View) and view.name)
    where = f" (This is about {'; and '.join(names)}.)" if names else ""
    return Finding(rule, severity, cells_of(members), text + where, dict(evidence), action)
