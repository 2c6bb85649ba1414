"""Corrections for many tests, by hand and by their properties."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workflows.statistics.multiplicity import bonferroni, holm


def test_a_p_that_was_chosen_among_several_is_multiplied() -> None:
    assert bonferroni(0.004, 3) == pytest.approx(0.012)
    assert bonferroni(0.004, 1000) == 1 and bonferroni(0.004, 0) == 0.004


def test_holm_by_hand() -> None:
    # Sorted 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1, then the running maximum.
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_lies_between_p_and_bonferroni_and_keeps_the_order(p: list[float]) -> None:
    corrected = holm(p)
    assert all(raw <= holm_p <= bonferroni(raw, len(p)) + 1e-12 for raw, holm_p in zip(p, corrected, strict=True))
    assert all(corrected[i] <= corrected[j] for i in range(len(p)) for j in range(len(p)) if p[i] <= p[j])
