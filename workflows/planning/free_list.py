"""Which workers can take more work, the emptiest first, in O(1) a change.

A search through all workers costs as much as they are many, for each unit that is handed out: with a thousand of them
a driver would do little else.
"""

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

__all__ = ["FreeList"]

W = TypeVar("W", bound=Hashable)


class FreeList(Generic[W]):
    """Workers that can take more, by how much each holds.

    Iteration yields those that hold least first, and of equals the one that has waited longest.

    Arguments:
        depth: What a worker can hold at most; one that holds so much is never in the list.
    """

    def __init__(self, depth: int) -> None:
        # An ordered dict is a set here whose first element is found in O(1) after any number of removals.
        self._holding: tuple[OrderedDict[W, None], ...] = tuple(OrderedDict() for _ in range(depth))
        self._held: dict[W, int] = {}

    def put(self, worker: W, held: int) -> None:
        """Say how much a worker holds, which is less than the depth."""
        self.remove(worker)
        self._holding[held][worker] = None
        self._held[worker] = held

    def remove(self, worker: W) -> None:
        """Take a worker out that can take no more, or is gone; one that is not in the list is none."""
        held = self._held.pop(worker, None)
        if held is not None:
            del self._holding[held][worker]

    def __iter__(self) -> Iterator[W]:
        for workers in self._holding:
            yield from workers
