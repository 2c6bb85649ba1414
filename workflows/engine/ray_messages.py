"""Read from the text of Ray's messages what no field of its exceptions holds.

Ray's exceptions give the reason why an actor or a node is gone only in their message. Every text that puregrid
depends on is here, behind a function that names its meaning. They were last seen in Ray :data:`SEEN_IN`;
``tests/workflows/test_ray_messages.py`` makes the installed Ray say them. Where a release of Ray uses other words,
no row is wrong: a unit is blamed for the end of its node, or a message is less to the point.
"""

from ray.exceptions import OutOfMemoryError

__all__ = ["SEEN_IN", "death_of_actor", "error_at_start", "node_has_died", "out_of_memory"]

SEEN_IN = "2.60.0"
"""The version of Ray that the texts were last seen in."""


def node_has_died(error: BaseException) -> bool:
    """Return whether an actor is gone since its whole node is."""
    return "node has died" in str(error)


def out_of_memory(error: BaseException) -> bool:
    """Return whether Ray's memory monitor ended a process, to save its machine.

    Ray reports it by the class of a process that had not begun its work, otherwise in the text alone.
    """
    return isinstance(error, OutOfMemoryError) or "low on memory" in str(error)


def error_at_start(error: BaseException) -> str | None:
    """Return the last line of the remote traceback if an actor's constructor raised, else None."""
    text = str(error)
    return _lines(text)[-1] if "raised in its creation task" in text else None


def death_of_actor(error: BaseException) -> str | None:
    """Return the sentence below a list of names in which Ray explains an actor's death; None without one."""
    for line in _lines(str(error)):
        if line.startswith("The actor") and " because " in line:
            return line.partition(" Some common causes")[0]  # of which it would list three
    return None


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]
