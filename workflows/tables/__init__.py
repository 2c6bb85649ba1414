"""The tables of a sweep: frames of committed rows with declared columns, notes, and the cells of each line.

One module a table. A column says its key, its title, how it is written and what it means; no table knows a format.
"""
