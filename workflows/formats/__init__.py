"""The renderers: any table, or a whole analysis, for a terminal, a wiki, a paper, a page, or a program.

No renderer knows the columns of a table: what is shown, how it is written and which notes belong to it is declared
with the table (:mod:`workflows.tables.table`).
"""

from workflows.formats.render import FORMATS, Format, render, render_tables

__all__ = ["FORMATS", "Format", "render", "render_tables"]
