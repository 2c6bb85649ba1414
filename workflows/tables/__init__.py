"""The tables of a sweep: frames of committed rows with declared columns, notes, and the cells of each line.

One module per table. A column declares its key, title, format and meaning; no table knows an output format.
"""
