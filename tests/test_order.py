"""The order of tests deals long ones to different processes and loses none."""

from __future__ import annotations

import pytest
from shares import in_shares


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
@pytest.mark.parametrize("count", [0, 4, 30, 31])
def test_every_share_begins_with_its_kind_and_none_is_lost(processes: int, count: int) -> None:
    kinds = [{3: 0, 7: 0, 11: 1, 12: 1, 2: 2, 20: 2}.get(i) for i in range(count)]
    dealt = in_shares(range(count), kinds, processes)
    assert sorted(dealt) == list(range(count))
    if count < 30:
        return
    begin, size = [], count
    for left in range(processes, 0, -1):  # as pytest-xdist deals them
        begin.append(count - size)
        size -= size // left
    long = {1: [[3, 7, 11, 12, 2, 20]], 2: [[3, 7, 11, 12], [2, 20]]}.get(processes, [[3, 7], [11, 12], [2, 20]])
    for first, items in zip(begin, long, strict=False):
        assert dealt[first : first + len(items)] == items


def test_a_kind_that_is_longer_than_a_share_goes_on_in_the_next() -> None:
    assert in_shares("abcdef", [0, 0, 0, 0, 2, None], 3) == list("abcdef")


@pytest.mark.parametrize("processes", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("kind", [0, 1, 2])
def test_where_all_are_of_one_kind_every_process_has_some(kind: int, processes: int) -> None:
    assert sorted(in_shares("abcdefg", [kind] * 7, processes)) == list("abcdefg")
    assert sorted(in_shares("abcdefg", [kind] * 6 + [None], processes)) == list("abcdefg")
