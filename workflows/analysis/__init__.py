"""Everything that the committed rows of a sweep show, computed once.

Everything that is shown, written or logged of a sweep is a rendering of one :class:`Analysis`: its tables, its
findings, its sentences and its provenance.
"""

from workflows.analysis.analysis import TABLES, Analysis

__all__ = ["TABLES", "Analysis"]
