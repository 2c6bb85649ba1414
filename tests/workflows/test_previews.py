"""Tables of what is there are shown early, then rarely, and never cost much of a run."""

from __future__ import annotations

from workflows.monitoring.previews import FIRST_SECONDS, Previews


class Run:
    """A run whose clock is set by hand."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.now, self.seconds, self.text = 0.0, seconds, "table"
        self.made: list[float] = []
        self.shown: list[tuple[float, str]] = []
        self.previews = Previews(self.make, lambda text: self.shown.append((self.now, text)), clock=lambda: self.now)

    def make(self) -> str:
        self.made.append(self.now)
        self.now += self.seconds
        return self.text

    def until(self, end: int) -> list[float]:
        """Tick once a second, with a unit a second, and return when tables were begun."""
        while self.now < end:
            self.now += 1
            self.previews.tick(int(self.now))
        return self.made


def test_the_first_comes_early_and_each_later_one_three_times_as_late() -> None:
    assert Run().until(1000) == [FIRST_SECONDS, 3 * FIRST_SECONDS, 9 * FIRST_SECONDS, 27 * FIRST_SECONDS]


def test_nothing_is_shown_again_without_a_new_unit() -> None:
    run = Run()
    for run.now in range(0, 1000, 5):
        run.previews.tick(0 if run.now < 100 else 1)
    assert run.shown == [(100, "table")]


def test_slow_tables_take_a_fiftieth_of_the_time_at_most() -> None:
    run = Run(seconds=40)
    begun = run.until(20_000)
    assert begun[0] == FIRST_SECONDS and begun[1] >= FIRST_SECONDS + 50 * 40
    assert 40 * (len(begun) - 1) <= 20_000 / 50


def test_what_is_empty_is_not_shown_and_looked_for_again_soon() -> None:
    run = Run()
    run.text = ""
    begun = run.until(40)
    assert begun == [15, 20, 25, 30, 35, 40] and run.shown == []
