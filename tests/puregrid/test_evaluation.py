"""A sweep from Python: the same sweep, ids and errors as from the command line."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import puregrid
import workflows
from puregrid.evaluation import _settings
from workflows.cli import app

SWEEPS = Path(workflows.__file__).parent / "sweeps"
TRIMMED = {
    "datasets.0.images.first": 4,
    "chunk": 2,
    "defences.1.t_star": 50,
    "defences.1.steps": 2,
    "attacks.1.eps": 0.15,
    "attacks.1.steps": 2,
}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


class TestLoad:
    def test_a_name_is_the_bundled_file(self) -> None:
        assert puregrid.load_sweep("quickstart").id == puregrid.load_sweep(SWEEPS / "quickstart.yaml").id
        assert "quickstart" in puregrid.bundled_sweeps()

    @pytest.mark.slow
    def test_a_mapping_overrides_as_the_command_line_does(self) -> None:
        sweep = puregrid.load_sweep("quickstart", TRIMMED)
        assert [cell.images.count for cell in sweep.cells] == [4] * 4
        assert sweep.id == puregrid.load_sweep("quickstart", [f"{k}={v}" for k, v in TRIMMED.items()]).id
        words = [word for k, v in TRIMMED.items() for word in ("--set", f"{k}={v}")]
        shown = json.loads(CliRunner().invoke(app, ["plan", "quickstart", "--json", *words]).stdout)
        assert shown["sweep_id"] == sweep.id

    @pytest.mark.parametrize(
        ("value", "text"), [(1e-05, "1e-05"), ("no", '"no"'), (None, "null"), ([0.1, 2], "[0.1, 2]"), (True, "true")]
    )
    def test_values_are_written_as_yaml_reads_them(self, value: Any, text: str) -> None:
        assert _settings({"key": value}) == [f"key={text}"]

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("quikstart",), "quikstart: there is no such file, no quikstart.yaml and no bundled sweep of this name"),
            ((3,), "name: a sweep file is named by its path or a bundled name, not by 3."),
            (("quickstart", "chunk=2"), "overrides are a mapping or a list of KEY=VALUE, not the text 'chunk=2'."),
            (("quickstart", {"chunk": {1}}), "the value of an override is no number, text, list or mapping"),
            (("quickstart", {"chunk": float("nan")}), "the value of an override is no number"),
            (("quickstart", {"chunk": 0}), "--set chunk=0: chunk: chunk is the number of images of a unit"),
        ],
    )
    def test_wrong_input_is_refused(self, arguments: tuple[Any, ...], message: str) -> None:
        with pytest.raises(puregrid.InvalidInput) as caught:
            puregrid.load_sweep(*arguments)
        assert str(caught.value).startswith(message)


class TestPlan:
    @pytest.mark.slow
    def test_it_counts_as_the_command_line_does(self, elsewhere: Path) -> None:
        planned = puregrid.plan("quickstart", elsewhere / "store")
        assert (planned.cells, planned.distinct, planned.missing) == (12, 90, 90)
        shown = json.loads(CliRunner().invoke(app, ["plan", "quickstart", "--json", "--no-preflight"]).stdout)
        assert planned.evaluations == shown["evaluations"]
        assert list(planned.stages["id"]) == [stage["id"] for stage in shown["stages"]]
        assert planned.stages["units"].sum() == 90 and planned.stages["committed"].sum() == 0
        assert planned.seconds is None
        assert repr(planned) == (
            "<PlannedSweep 'quickstart': 12 cells, 90 distinct units, 90 to compute with "
            f"{planned.evaluations:,} network evaluations>"
        )
        assert not list(elsewhere.iterdir())

    @pytest.mark.parametrize(("workers", "said"), [(0, "0"), (True, "True"), ("2", "'2'")])
    def test_wrong_numbers_are_refused(self, workers: Any, said: str) -> None:
        with pytest.raises(puregrid.InvalidInput) as caught:
            puregrid.plan("quickstart", workers=workers)
        assert str(caught.value) == f"workers: workers is a number of at least 1, not {said}."

    def test_a_store_is_a_path(self) -> None:
        with pytest.raises(puregrid.InvalidInput, match="a store is named by the path of a folder or the URI"):
            puregrid.plan("quickstart", 7)  # type: ignore[arg-type]


class TestRun:
    @pytest.mark.parametrize(
        ("option", "value"),
        [("workers", -1), ("gpus_per_worker", -0.5), ("max_attempts", 0), ("unit_timeout", 0.5), ("workers", "all")],
    )
    def test_wrong_numbers_are_refused_before_anything_starts(self, elsewhere: Path, option: str, value: Any) -> None:
        with pytest.raises(puregrid.InvalidInput, match=f"^{option}: {option} is a number of at least"):
            puregrid.run("quickstart", elsewhere / "store", **{option: value})
        assert not list(elsewhere.iterdir())

    def test_results_of_a_store_that_has_none_are_refused(self, elsewhere: Path) -> None:
        with pytest.raises(puregrid.InvalidInput) as caught:
            puregrid.open_results(elsewhere / "store", "quickstart")
        assert str(caught.value).startswith(
            f"{elsewhere / 'store'}: nothing of the sweep 'quickstart' is committed here."
        )

    @pytest.mark.slow
    def test_a_thread_that_is_not_the_main_one_runs_a_sweep_and_reads_it(
        self, elsewhere: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        sweep, store = puregrid.load_sweep("quickstart", TRIMMED), elsewhere / "store"
        ended: list[puregrid.SweepRun] = []
        thread = threading.Thread(target=lambda: ended.append(puregrid.run(sweep, store, workers=1)))
        thread.start()
        thread.join(300)
        (done,) = ended
        assert done.complete
        assert repr(done) == "<SweepRun of 'quickstart': complete, 10 units computed>"
        assert "4 cells, 10 distinct units, 0 committed, 10 to compute" in capsys.readouterr().err
        frame = done.results.robustness
        assert len(frame) == 4 and set(frame["images"]) == {4}
        assert frame.query("eps == 0 and purifier == 'none'")["accuracy"].item() == 1.0
        assert puregrid.plan(sweep, store).missing == 0

        # Again, nothing is computed and nothing is said.
        again = puregrid.run(sweep, store, quiet=True)
        assert (again.outcome.computed, again.complete, capsys.readouterr().err) == (0, True, "")
        opened = puregrid.open_results(store, sweep)
        assert opened.robustness.equals(frame)
        page = opened.report(elsewhere / "page.html")
        assert page == elsewhere / "page.html" and "digits-cnn" in page.read_text()
        assert opened.report(elsewhere / "folder", how="md").read_text().startswith("# ")
