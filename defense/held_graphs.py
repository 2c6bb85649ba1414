"""Graphs of forward passes that wait in memory for their backward pass, within a limit of bytes.

The exact gradient (:mod:`defense.chain_gradient`) computes a chain, then each step anew with its graph, then goes
back: three passes through the network. Where the graph of the first pass is held, the second falls away. The graph is
that of the very states that were visited, so results have the same bits whatever the limit.

A graph holds what its operations save for the way back. Its bytes are counted once for each kind of segment, by
visiting the nodes of the graph; weights, which are there anyway, are left out. The first of a kind is never held: it
is rebuilt, so that its states are compared with those of the forward pass.
"""

import contextlib
import itertools
import threading
import weakref
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator
from contextvars import ContextVar
from typing import Any

from torch import Tensor

__all__ = ["HeldGraphs", "graph_bytes", "held_graphs", "holding", "number_of"]

_NAMES: dict[type, tuple[str, ...]] = {}
"""What the nodes of each type save."""

_NUMBERS: weakref.WeakKeyDictionary[object, int] = weakref.WeakKeyDictionary()
_COUNT = itertools.count()


def number_of(owner: object) -> int:
    """Return a number that no other object has had in this process."""
    if owner not in _NUMBERS:
        _NUMBERS[owner] = next(_COUNT)
    return _NUMBERS[owner]


class HeldGraphs:
    """Which graphs are held, and how many bytes they have.

    Arguments:
        limit: Bytes that all graphs held at a time may have.

    Attributes:
        held: Bytes that they have now.
        most: Bytes that they had at most since :meth:`begin`.
    """

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.held = self.most = self._largest = 0
        self._sizes: dict[Hashable, int] = {}
        # A graph may be let go by another thread, or by a garbage collection in the middle of a count of this one.
        self._lock = threading.RLock()

    def begin(self) -> None:
        """Begin to count the most bytes anew."""
        self.most = self._largest = 0

    @property
    def beyond_need(self) -> int:
        """Bytes that were held at most beyond the one graph that there is at a time without."""
        return self.most - self._largest

    def learn(
        self, kind: Hashable, outputs: Iterable[Tensor], besides: Callable[[], Collection[int]] = tuple
    ) -> None:
        """Count the bytes of a graph, if its kind is new.

        Arguments:
            kind: Graphs of one kind have as many bytes.
            outputs: Where it ends.
            besides: Returns addresses of memory that does not count, such as that of weights.
        """
        if kind not in self._sizes:
            self._sizes[kind] = graph_bytes(outputs, besides())

    def may_hold(self, kind: Hashable) -> bool:
        """Return whether there is room for a graph of this kind; of one that is new nobody knows."""
        return kind in self._sizes and self.held + self._sizes[kind] <= self.limit

    def hold(self, kind: Hashable, owner: object) -> None:
        """Count a graph as held until its owner, the only one that holds it, is gone."""
        size = self._sizes[kind]
        with self._lock:
            self.held += size
            self.most, self._largest = max(self.most, self.held), max(self._largest, size)
        weakref.finalize(owner, self._release, size).atexit = False

    def _release(self, size: int) -> None:
        with self._lock:
            self.held -= size


_HELD: ContextVar[HeldGraphs | None] = ContextVar("held_graphs", default=None)


def held_graphs() -> HeldGraphs | None:
    """Return who holds graphs here; None where nobody does, and each is built when it is needed."""
    return _HELD.get()


@contextlib.contextmanager
def holding(graphs: HeldGraphs | None) -> Iterator[None]:
    """Let exact gradients inside hold their graphs.

    Arguments:
        graphs: Who counts them; None for no graphs at all.
    """
    before = _HELD.set(graphs)
    try:
        yield
    finally:
        _HELD.reset(before)


def graph_bytes(outputs: Iterable[Tensor], besides: Collection[int] = ()) -> int:
    """Return the bytes that the graph of some outputs holds for its backward pass.

    Arguments:
        outputs: Where it ends.
        besides: Addresses of memory that does not count.
    """
    ways: list[Any] = [out.grad_fn for out in outputs]
    seen, sizes = set(), dict[int, int]()
    while ways:
        node = ways.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        ways += [following for following, _ in node.next_functions]
        for saved in _saved(node):
            memory = saved.untyped_storage()
            if memory.data_ptr() not in besides:
                sizes[memory.data_ptr()] = memory.nbytes()
    return sum(sizes.values())


def _saved(node: Any) -> Iterator[Tensor]:
    """Yield the tensors that a node of a graph holds."""
    kind = type(node)
    if kind not in _NAMES:
        own = "saved_tensors"  # of functions written in Python
        _NAMES[kind] = (own,) if hasattr(kind, own) else tuple(n for n in dir(kind) if n.startswith("_saved_"))
    for name in _NAMES[kind]:
        value = getattr(node, name)
        for saved in value if isinstance(value, tuple | list) else (value,):
            if isinstance(saved, Tensor):
                yield saved
