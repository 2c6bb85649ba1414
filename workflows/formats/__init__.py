"""The renderers: any table, or all that an analysis says, for a terminal, a wiki, a paper, a page, or a program.

No renderer knows a table by its columns: what is shown, how it is written and what has to be known with it is
declared with the table (:mod:`workflows.tables.table`).
"""

from __future__ import annotations

from workflows.formats.render import FORMATS, Format, render, render_tables

__all__ = ["FORMATS", "Format", "render", "render_tables"]
