"""Units on Ray workers: hand them out, watch them commit, survive what dies.

The only room that knows Ray.
"""
