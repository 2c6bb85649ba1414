"""The order in which processes of tests get their shares."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def in_shares(items: Sequence[T], kinds: Sequence[int | None], processes: int) -> list[T]:
    """Items in the order in which pytest-xdist deals them: the first process gets the first share, and so on.

    Arguments:
        items: In any order, which stays that of each kind.
        kinds: Of each item 0, 1 or 2, which are the beginning of shares, or None.
        processes: Among which they are dealt in shares of equal size.
    """
    firsts: list[list[T]] = [[] for _ in range(processes)]
    for kind in range(3):
        share = kind if processes > 3 else kind * processes // 3
        firsts[share] += [item for item, its in zip(items, kinds, strict=True) if its == kind]
    rest = deque(item for item, its in zip(items, kinds, strict=True) if its is None)
    dealt: list[T] = []
    for share, first in enumerate(firsts):
        size = (len(items) - len(dealt)) // (processes - share)
        dealt += first[:size]
        rest.extendleft(reversed(first[size:]))
        for _ in range(size - len(first)):
            dealt.append(rest.popleft() if rest else max(firsts[share + 1 :], key=len).pop())
    return dealt
