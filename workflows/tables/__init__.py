"""The tables of a sweep, recomputed from committed rows.

Each says what a line is, on how many images it stands, and with which interval.
"""
