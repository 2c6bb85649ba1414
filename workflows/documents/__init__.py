"""YAML in which every value knows its line.

A document is read once, overridden by ``--set``, split into entries, and every mistake in it is reported at its own
path and line.
"""
