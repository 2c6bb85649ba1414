"""How far a run is: time left whatever a unit takes, and a line a minute where nobody sees a bar."""

from __future__ import annotations

import re

import pytest

from workflows.monitoring.progress import HEARTBEAT_SECONDS, SweepProgress, phase


class Clock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def run(clock: Clock, said: list[str], *, total: int = 10, work: float = 100.0) -> SweepProgress:
    return SweepProgress(total, 0, work, say=said.append, clock=clock)


class TestTimeLeft:
    @pytest.mark.parametrize("seconds", [0.5, 45.0, 60.0, 7200.0])
    def test_it_is_known_after_the_first_unit_however_long_that_took(self, clock: Clock, seconds: float) -> None:
        with run(clock, []) as progress:
            assert progress.seconds_left is None
            clock.now += seconds
            progress.committed(1, 8, 10.0)
            assert progress.seconds_left == pytest.approx(9 * seconds)
            clock.now += 0.9 * seconds  # no unit ends meanwhile
            assert progress.seconds_left is not None

    def test_it_goes_by_work_and_not_by_units(self, clock: Clock) -> None:
        with run(clock, []) as progress:
            clock.now += 30
            progress.committed(9, 72, 30.0)  # nine cheap ones; one of 70 is left
            assert progress.seconds_left == pytest.approx(70.0)

    def test_what_the_driver_expects_goes_before_and_passes_while_units_run(self, clock: Clock) -> None:
        with run(clock, []) as progress:
            progress.expected(600.0)  # from an earlier run, before any unit ends
            assert progress.seconds_left == 600.0
            clock.now += 60
            progress.expected(600.0)
            assert progress.seconds_left == 540.0
            progress.committed(1, 8, 10.0)
            progress.expected(500.0)
            assert progress.seconds_left == 500.0
            clock.now += 900
            assert progress.seconds_left == 0.0

    def test_nothing_is_left_once_all_units_are_committed_whatever_was_expected_of_the_last(
        self, clock: Clock
    ) -> None:
        said: list[str] = []
        with run(clock, said) as progress:
            progress.expected(62.2)
            clock.now += HEARTBEAT_SECONDS
            assert progress.seconds_left == pytest.approx(2.2)
            progress.committed(10, 80, 100.0)
            assert progress.seconds_left == 0.0
        assert said == ["running: 10 of 10 units · 1.3 images/s · all committed"]


class TestLines:
    def test_a_pipe_gets_a_line_a_minute_with_all_that_a_bar_shows(self, clock: Clock) -> None:
        said: list[str] = []
        with run(clock, said) as progress:
            for _ in range(4):
                clock.now += HEARTBEAT_SECONDS / 2
                progress.trouble(0, 0)
            clock.now += HEARTBEAT_SECONDS
            progress.committed(1, 6, 10.0)
            progress.trouble(1, 2)
            progress.phase("draining, 3 running units left")
            clock.now += HEARTBEAT_SECONDS
            progress.trouble(1, 2)
        assert said == [
            "running: 0 of 10 units · 0 images/min · time left unknown until the first unit ends",
            "running: 0 of 10 units · 0 images/min · time left unknown until the first unit ends",
            "running: 1 of 10 units · 2 images/min · 27.0 min left",
            "draining, 3 running units left: 1 of 10 units · 1.5 images/min · 36.0 min left · 1 failed · 2 retried",
        ]

    def test_a_short_run_says_nothing(self, clock: Clock) -> None:
        said: list[str] = []
        with run(clock, said) as progress:
            clock.now += HEARTBEAT_SECONDS - 1
            progress.committed(10, 80, 100.0)
        assert said == []

    def test_a_quiet_one_never_does(self, clock: Clock) -> None:
        said: list[str] = []
        with SweepProgress(10, 0, 100.0, quiet=True, say=said.append, clock=clock) as progress:
            clock.now += 10 * HEARTBEAT_SECONDS
            progress.committed(1, 1, 10.0)
        assert said == []


class TestTerminal:
    @pytest.fixture(autouse=True)
    def terminal(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in {"FORCE_COLOR": "1", "TERM": "xterm", "COLUMNS": "100"}.items():
            monkeypatch.setenv(name, value)

    def test_the_bar_has_the_time_left_of_slow_units(self, capsys: pytest.CaptureFixture[str], clock: Clock) -> None:
        with run(clock, []) as progress:
            clock.now += 60
            progress.committed(1, 3, 10.0)
        text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().err)
        assert "1 of 10 units · 3 images/min · 9.0 min left" in text

    def test_a_phase_is_on_the_screen_while_it_lasts(self, capsys: pytest.CaptureFixture[str]) -> None:
        with phase("checking what is committed"):
            pass
        assert "checking what is committed ..." in capsys.readouterr().err


def test_a_phase_leaves_pipes_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with phase("checking what is committed"):
        pass
    assert capsys.readouterr() == ("", "")
