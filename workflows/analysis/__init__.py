"""What the committed rows of a sweep say, once.

Everything that is shown, written or logged of a sweep is a rendering of one :class:`Analysis`.
"""

from __future__ import annotations

from workflows.analysis.analysis import Analysis

__all__ = ["Analysis"]
