"""Committed rows as frames, and what a store remembers of a sweep.

Nothing is computed here that is not a function of committed rows and the sweep.
"""
