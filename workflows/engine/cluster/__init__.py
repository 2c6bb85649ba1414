"""The Ray cluster of a sweep: one that is there, or one of its own that nobody else reaches."""

from workflows.engine.cluster.connection import Head, cluster, room, slots

__all__ = ["Head", "cluster", "room", "slots"]
