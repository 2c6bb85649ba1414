"""What figures are made of: groups of rows, and shares as text."""

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from workflows.report.charts import Drawing, Panels
from workflows.tables.table import interval

__all__ = ["Drawings", "groups", "percent"]

Drawings = Iterator[tuple[str, Drawing | Panels, pd.DataFrame]]
"""Caption, figure and numbers of each."""


def groups(frame: pd.DataFrame, by: Sequence[str]) -> Iterator[tuple[tuple[Any, ...], pd.DataFrame]]:
    """Yield the rows of each combination of values, in the order in which they appear."""
    for key, rows in frame.groupby(list(by), sort=False, dropna=False):
        yield (key if isinstance(key, tuple) else (key,)), rows


def percent(value: float, low: float, high: float) -> str:
    """Return a share with its interval in %."""
    return interval(value, low, high).replace(" [", " % [")
