"""What Ray says in words alone.

Why an actor or a node is gone, Ray's exceptions say in the text of their message and in no field. Every text that
puregrid goes by is here, behind a function that says what it means. They were last seen in Ray :data:`SEEN_IN`;
``tests/workflows/test_ray_messages.py`` makes the installed Ray say them. Where a release of Ray words one otherwise,
no row is wrong: a unit is blamed for the end of its node, or a message is less to the point.
"""

from __future__ import annotations

from ray.exceptions import OutOfMemoryError

__all__ = ["SEEN_IN", "death_of_actor", "error_at_start", "node_has_died", "out_of_memory"]

SEEN_IN = "2.60.0"
"""The version of Ray that the texts were last seen in."""


def node_has_died(error: BaseException) -> bool:
    """Whether an actor is gone since its whole node is."""
    return "node has died" in str(error)


def out_of_memory(error: BaseException) -> bool:
    """Whether Ray's memory monitor ended a process, to save its machine.

    Of a process that had not begun its work Ray says so by the class, of others in the text alone.
    """
    return isinstance(error, OutOfMemoryError) or "low on memory" in str(error)


def error_at_start(error: BaseException) -> str | None:
    """The last line of the remote traceback where an actor's constructor raised, else None."""
    text = str(error)
    return _lines(text)[-1] if "raised in its creation task" in text else None


def death_of_actor(error: BaseException) -> str | None:
    """The sentence that says why an actor died, which Ray puts below a list of names; None if there is none."""
    for line in _lines(str(error)):
        if line.startswith("The actor") and " because " in line:
            return line.partition(" Some common causes")[0]  # of which it would list three
    return None


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]
