"""MLflow holds what the rows say: once, updated when they change, in runs that are found again.

One store is filled in two steps and tracked twice after each, with a real MLflow on SQLite.
"""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from defense.spec import digest
from workflows.analysis import Analysis
from workflows.audit import Finding
from workflows.engine.worker import UnitWorker
from workflows.formats import render
from workflows.formats.machine import csv
from workflows.grid.load import Sweep, load_sweep
from workflows.monitoring.mlflow_client import BoundedClient
from workflows.planning.plan import Plan, make_plan
from workflows.results.reader import Results
from workflows.store import Store
from workflows.tracking.experiments import Places
from workflows.tracking.run import Point, Run
from workflows.tracking.runs import RunLog
from workflows.tracking.track import default_uri, track

ASSETS = Path(__file__).parents[2] / "defense" / "assets"
TEXT = f"""\
# tracked
sweep: tracked
datasets: [{{dataset: digits, images: {{first: 20}}}}]
classifiers:
  - digits-cnn
  - {{classifier: digits-cnn, name: shifted, mean: [0.5]}}
denoisers: {{ddpm: {{path: {ASSETS / "digits-ddpm"}, schedule: linear-1000}}}}
defences:
  - none
  - {{purifier: diffpure, denoiser: ddpm, schedule: linear-1000, t_star: 40, steps: 2, draws: 3}}
attacks:
  - none
  - {{attack: pgd, norm: linf, eps_255: 26, steps: 2, step_size: [0.05, 0.1]}}
  - {{attack: pgd, norm: linf, eps: 0.3, steps: 2, step_size: 0.1}}
chunk: 10
"""
PAGES = {"report.html": "<p>report</p>", "figures/depths.svg": "<svg/>"}
ATTACKS = 3
IMAGES_KEYS = (
    "clean",
    "pgd-2 linf step_size 0.05 eps 26 of 255",
    "pgd-2 linf step_size 0.1 eps 26 of 255",
    "pgd-2 linf step_size 0.1 eps 0.3",
)
_VERBS = ("create", "search", "get", "log", "update", "set", "delete", "finalize", "restore")
"""How the methods of MLflow's store begin that a server would answer a request with."""

NAMES = {
    "digits-cnn · none",
    "digits-cnn · diffpure t*=40 in 2 steps",
    "shifted · none",
    "shifted · diffpure t*=40 in 2 steps",
}


@dataclass(frozen=True)
class Moment:
    """MLflow and the analysis after one call of track()."""

    parent: str
    analysis: Analysis
    runs: dict[str, Any]
    counts: dict[str, int]
    rows: dict[str, Counter[tuple[Any, ...]]]
    files: dict[str, tuple[int, str]]
    calls: Counter[str]


@dataclass(frozen=True)
class Story:
    """The four calls: partial rows, the same again, complete rows, the same again."""

    store: Store
    sweep: Sweep
    moments: tuple[Moment, Moment, Moment, Moment]

    @property
    def children(self) -> list[Any]:
        """The final runs below the parent."""
        last = self.moments[-1]
        return [run for run in last.runs.values() if run.info.run_id != last.parent]

    def rows_of(self, run: Any) -> pd.DataFrame:
        """The robustness rows that a child stands for."""
        frame = self.moments[-1].analysis.robustness
        found: pd.DataFrame = frame[(frame["classifier"] + " · " + frame["defence"]) == run.info.run_name]
        return found


def _compute(plan: Plan, store: Store, *, last_chunks: bool) -> None:
    """All units but those that judge the last chunk, or those."""
    worker = UnitWorker(store.uri, "cpu")
    for stage in plan.stages:
        inputs = {role: (plan.stages[i].spec.stage, plan.stages[i].id) for role, i in stage.inputs.items()}
        for position, chunk in enumerate(stage.chunks):
            late = stage.spec.stage == "evaluate" and position == len(stage.chunks) - 1
            if late == last_chunks:
                worker.run(stage.spec, stage.id, chunk, inputs)


def _sql(database: Path, table: str) -> Counter[tuple[Any, ...]]:
    with sqlite3.connect(database) as connection:
        return Counter(connection.execute(f'SELECT * FROM "{table}"').fetchall())


def _moment(store: Store, sweep: Sweep, uri: str) -> Moment:
    from mlflow import MlflowClient

    analysis = Analysis(Results(store, sweep), audit=False)
    calls, method = Counter[str](), BoundedClient.__getattr__

    def counted(client: BoundedClient, name: str) -> Any:
        calls[name] += 1
        return method(client, name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BoundedClient, "__getattr__", counted)
        parent = track(uri, analysis, versions={"python": "3.x", "torch": "2.y"}, pages=PAGES)
    client = MlflowClient(tracking_uri=uri)
    experiments = [e.experiment_id for e in client.search_experiments()]
    runs = {run.info.run_id: run for run in client.search_runs(experiments)}
    database = Path(uri.removeprefix("sqlite:///"))
    with sqlite3.connect(database) as connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    rows = {table: _sql(database, table) for table in tables}
    artifacts = Path(store.uri) / "mlartifacts"
    files = {
        str(path.relative_to(artifacts)): (path.stat().st_mtime_ns, path.read_text())
        for path in artifacts.rglob("*")
        if path.is_file()
    }
    return Moment(parent, analysis, runs, {t: sum(c.values()) for t, c in rows.items()}, rows, files, calls)


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    folder = tmp_path_factory.mktemp("tracking")
    (folder / "s.yaml").write_text(TEXT)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        sweep = load_sweep(folder / "s.yaml")
        store, plan = Store(str(folder / "store")), make_plan(sweep)
        uri = default_uri(store.uri)
        assert uri is not None
        _compute(plan, store, last_chunks=False)
        partial = (_moment(store, sweep, uri), _moment(store, sweep, uri))
        _compute(plan, store, last_chunks=True)
        yield Story(store, sweep, (*partial, _moment(store, sweep, uri), _moment(store, sweep, uri)))


def other(story: Story, folder: Path, *, audit: bool = False) -> Analysis:
    """The same rows in a store of another place, so that what is logged of them stays apart."""
    shutil.copytree(story.store.uri, folder / "copy", ignore=shutil.ignore_patterns("ml*"), dirs_exist_ok=True)
    return Analysis(Results(Store(str(folder / "copy")), story.sweep), audit=audit)


def _tracked(run: Any) -> dict[str, Any]:
    """What is in a run, without times."""
    return {
        "name": run.info.run_name,
        "params": run.data.params,
        "metrics": run.data.metrics,
        "tags": {k: v for k, v in run.data.tags.items() if not k.startswith("mlflow.note")},
        "times": (run.info.start_time, run.info.end_time),
    }


@pytest.mark.usefixtures("mlflow_tables")
@pytest.mark.slow  # the fixture: MLflow makes its database in some seconds
class TestStructure:
    def test_there_is_one_experiment_and_one_parent_named_after_the_sweep(self, story: Story) -> None:
        moment = story.moments[-1]
        assert {m.parent for m in story.moments} == {moment.parent}
        assert {run.info.experiment_id for run in moment.runs.values()} == {
            moment.runs[moment.parent].info.experiment_id
        }
        parent = moment.runs[moment.parent]
        assert parent.info.run_name == "tracked"
        assert "mlflow.parentRunId" not in parent.data.tags
        for run in moment.runs.values():  # MLflow's columns of users and sources
            assert run.data.tags["mlflow.source.name"] == "puregrid" and run.data.tags["mlflow.user"]
        assert parent.data.tags["puregrid.run"].startswith(f"{story.sweep.id} {story.sweep.id} ")
        note = parent.data.tags["mlflow.note.content"]
        # All tables are longer than a description may be.
        assert note.startswith(render(moment.analysis, "md", only="leaderboard", findings=False))
        assert note.endswith("The other tables are in the artifact tables/tables.md.")
        assert (parent.data.tags["version.python"], parent.data.tags["version.torch"]) == ("3.x", "2.y")
        names = [row[1] for row in moment.rows["experiments"] if row[1] != "Default"]
        assert names == ["tracked"]

    def test_there_is_a_child_for_every_classifier_and_defence(self, story: Story) -> None:
        assert len(story.children) == 4
        assert {run.info.run_name for run in story.children} == NAMES
        for run in story.children:
            assert run.data.tags["mlflow.parentRunId"] == story.moments[-1].parent
            assert run.data.tags["puregrid.run"].startswith(f"{story.sweep.id} ")
        assert len({run.data.tags["puregrid.run"].split()[1] for run in story.children}) == 4

    def test_one_tag_alone_has_hashes(self, story: Story) -> None:
        """Those of MLflow's own are not shown."""
        for run in story.moments[-1].runs.values():
            shown = {key: value for key, value in run.data.tags.items() if not key.startswith("mlflow.")}
            hashes = {key for key, value in shown.items() if re.search("[0-9a-f]{12}", value)}
            assert hashes == {"puregrid.run"}
            assert set(shown) <= {"puregrid.run", "puregrid.complete", "version.python", "version.torch"}

    def test_runs_last_from_the_first_unit_to_the_last_one_as_commits_say(self, story: Story) -> None:
        """A child by its own units, and the parent by those of all."""
        spans = {}
        for run in story.children:
            ids = set(story.rows_of(run)["cell"])
            units = []
            for cell in story.sweep.cells:
                if cell.id in ids:
                    for spec in filter(None, (cell.evaluate, cell.attack_stage)):
                        units += [
                            story.store.committed(spec.stage, spec.id, chunk.name) for chunk in cell.images.chunks
                        ]
            assert len(units) == 2 * 4 + 2 * 3 and all(unit is not None and unit.ended > 1.7e9 for unit in units)
            spans[run.info.run_id] = (
                round(1000 * min(unit.ended - unit.seconds for unit in units if unit is not None)),
                round(1000 * max(unit.ended for unit in units if unit is not None)),
            )
            # The run was made when half of the units were there, and MLflow keeps the time at which it began.
            assert spans[run.info.run_id] == (run.info.start_time, run.info.end_time)
        parent = story.moments[-1].runs[story.moments[-1].parent].info
        assert (parent.start_time, parent.end_time) == (
            min(begin for begin, _ in spans.values()),
            max(end for _, end in spans.values()),
        )
        assert len(set(spans.values())) == 4

    def test_params_are_the_fields_of_the_defence(self, story: Story) -> None:
        found = {run.info.run_name: run.data.params for run in story.children}
        weights = story.sweep.cells[0].classifier.sha256
        shared = {"dataset": "digits", "images": "20", "classifier": "digits-cnn", "classifier.sha256": weights}
        assert found["digits-cnn · none"] == {
            **shared,
            "purifier.purifier": "none",
            "draws": "1",
            "aggregation": "single",
            "seed": "0",
        }
        purified = found["shifted · diffpure t*=40 in 2 steps"]
        level = story.sweep.cells[-1].defence.purifier.noise_level
        assert level is not None
        expected = {
            **shared,
            "purifier.purifier": "diffpure",
            "purifier.t_star": "40",
            "purifier.steps": "2",
            "purifier.schedule": "linear-1000",
            "denoiser.format": "diffusers",
            "draws": "3",
            "abar": str(level.abar),
            "sigma_eq": str(level.sigma_eq),
        }
        assert {key: purified[key] for key in expected} == expected
        assert len(purified["denoiser.sha256"]) == 64

    def test_parent_counts_cells_and_costs(self, story: Story) -> None:
        moment = story.moments[-1]
        parent = moment.runs[moment.parent]
        assert parent.data.params == {"cells": "16", "sweep": "tracked"}
        assert parent.data.metrics == {
            "cost/seconds": pytest.approx(moment.analysis.cost["seconds"].sum()),
            # Two classifiers, clean and three attacks, 20 images, three draws of two steps.
            "cost/denoiser_evaluations": 2 * 4 * 20 * 3 * 2,
        }


@pytest.mark.usefixtures("mlflow_tables")
@pytest.mark.slow  # the fixture: MLflow makes its database in some seconds
class TestMetrics:
    def test_metrics_are_the_headline_and_avg_and_worst_of_the_robustness_frame(self, story: Story) -> None:
        for run in story.children:
            rows = story.rows_of(run).to_dict("records")
            assert len(rows) == len(IMAGES_KEYS)
            expected = _headline(rows)
            for where, row in zip(IMAGES_KEYS, rows, strict=True):
                for name in ("avg", "worst"):
                    expected[f"{name}/{where}"] = row[name]
            curves = {k: v for k, v in run.data.metrics.items() if k.startswith("avg by eps/")}
            # Two step sizes of one budget together are tested below.
            metrics = {k: v for k, v in run.data.metrics.items() if k not in curves and "2 attacks" not in k}
            assert metrics == expected
            # A curve's last point is that of the largest budget.
            assert curves == {
                "avg by eps/pgd-2 linf step_size 0.05": rows[1]["avg"],
                "avg by eps/pgd-2 linf step_size 0.1": rows[3]["avg"],
            }

    def test_the_numbers_differ_between_cells_so_that_a_mix_up_shows(self, story: Story) -> None:
        frame = story.moments[-1].analysis.robustness
        assert len(set(frame["avg"])) >= 4
        assert (frame["avg_low"] < frame["avg"]).sum() >= 8

    def test_a_curve_has_a_point_per_budget_with_clean_at_zero(self, story: Story) -> None:
        steps: dict[tuple[str, str], dict[int, float]] = {}
        for row in _metric_rows(story):
            if row["key"].startswith("avg by eps/"):
                steps.setdefault((row["run_uuid"], row["key"]), {})[row["step"]] = row["value"]
        for run in story.children:
            rows = story.rows_of(run).to_dict("records")
            assert steps[run.info.run_id, "avg by eps/pgd-2 linf step_size 0.1"] == {
                0: rows[0]["avg"],
                1020: rows[2]["avg"],
                3000: rows[3]["avg"],
            }

    def test_partial_rows_give_the_metrics_of_what_is_there(self, story: Story) -> None:
        moment = story.moments[0]
        assert set(moment.analysis.robustness["images"]) == {10}
        for run in moment.runs.values():
            if run.info.run_id != moment.parent:
                name = f"{run.info.run_id}/artifacts/tables/accuracy.json"
                table = _table(next(text for path, (_, text) in moment.files.items() if path.endswith(name)))
                assert set(table["images"]) == {10} and len(set(table["attack"] + table["eps"])) == len(IMAGES_KEYS)


def _headline(rows: list[dict[str, Any]]) -> dict[str, float]:
    return {
        "clean": rows[0]["avg"],
        "strongest": min(row["avg"] for row in rows[1:]),
        "worst_of_m": min(row["worst"] for row in rows[1:]),
    }


def _table(text: str) -> pd.DataFrame:
    return pd.read_json(StringIO(text), orient="split", dtype={"eps": str, "answers": str})


def _metric_rows(story: Story) -> list[dict[str, Any]]:
    with sqlite3.connect(Path(story.store.uri) / "mlflow.db") as connection:
        cursor = connection.execute("SELECT run_uuid, key, value, step FROM metrics ORDER BY timestamp")
        return [dict(zip(("run_uuid", "key", "value", "step"), row, strict=True)) for row in cursor]


@pytest.mark.usefixtures("mlflow_tables")
@pytest.mark.slow  # the fixture: MLflow makes its database in some seconds
class TestInputsAndArtifacts:
    def test_every_child_has_the_data_set_with_its_digest_as_input(self, story: Story) -> None:
        images = story.sweep.cells[0].images
        for run in story.children:
            (entry,) = run.inputs.dataset_inputs
            assert entry.dataset.name == "digits"
            assert entry.dataset.digest == (images.dataset.digest or "")[:16] == "72f17156a53066e1"
            assert json.loads(entry.dataset.source)["digest"] == images.dataset.digest
            assert {tag.key: tag.value for tag in entry.tags} == {
                "mlflow.data.context": "evaluation",
                "image_ids_digest": digest("".join(chunk.name for chunk in images.chunks)),
                "images": "20",
            }

    def test_artifacts_are_the_sweep_file_and_its_tables(self, story: Story) -> None:
        moment = story.moments[-1]
        found = {
            path.split("/artifacts/")[1]: text
            for path, (_, text) in moment.files.items()
            if f"/{moment.parent}/" in path
        }
        assert found == {
            "sweep.yaml": TEXT,
            **{f"tables/{table.name}.csv": csv(table) for table in moment.analysis.tables},
            "tables/tables.json": render(moment.analysis, "json"),
            "tables/tables.md": render(moment.analysis, "md"),
            "report.html": "<p>report</p>",
            "figures/depths.svg": "<svg/>",
        }
        others = sorted(path.split("/artifacts/")[1] for path in moment.files if moment.parent not in path)
        assert others == ["tables/accuracy.json"] * 4 + ["tables/images.json"] * 4

    def test_a_child_has_every_accuracy_with_its_interval_as_a_table(
        self, story: Story, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from mlflow import MlflowClient

        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{story.store.uri}/mlflow.db")  # load_table asks for it
        client = MlflowClient()
        experiment = story.children[0].info.experiment_id
        combined = story.moments[-1].analysis.combined
        for run in story.children:
            table = client.load_table(experiment, "tables/accuracy.json", run_ids=[run.info.run_id])
            rows = story.rows_of(run).to_dict("records")
            readings = ("avg", "worst", "vote", "fixed", "accuracy")
            expected = [
                (row["attack"], name, row[name], row[f"{name}_low"], row[f"{name}_high"], 20, row["draws"])
                for row in rows
                for name in readings
            ]
            classifier, defence = run.info.run_name.split(" · ")
            mine = combined[(combined["classifier"] == classifier) & (combined["defence"] == defence)]
            for row in mine.to_dict("records"):
                for name in ("lowest", "selected", "fixed_aa_mean", "fixed_aa_any"):
                    if row[name] == row[name]:
                        values = row[name], row[f"{name}_low"], row[f"{name}_high"]
                        expected.append(("2 attacks linf", name, *values, 20, row["draws"]))
            columns = ["attack", "reading", "accuracy", "low", "high", "images", "draws"]
            found = [tuple(line) for line in table[columns].itertuples(index=False)]
            assert [line[:2] for line in found] == [line[:2] for line in expected]
            assert [line[2:] for line in found] == [pytest.approx(line[2:], rel=1e-12) for line in expected]

    def test_a_child_has_what_became_of_every_image_as_a_table(self, story: Story) -> None:
        """Beside the rows of the store."""
        moment = story.moments[-1]
        cells = {cell.id: cell for cell in story.sweep.cells}
        for run in story.children:
            name = f"{run.info.run_id}/artifacts/tables/images.json"
            table = _table(next(text for path, (_, text) in moment.files.items() if path.endswith(name)))
            assert len(table) == 4 * 20 and set(table["broken_by"].fillna("")) == {""}
            for (_, lines), cell in zip(
                table.groupby(["attack", "eps"], sort=False), story.rows_of(run)["cell"], strict=True
            ):
                rows = moment.analysis.results.rows(cells[cell])
                assert lines["image"].tolist() == rows["image_id"].tolist()
                assert lines["label"].tolist() == rows["label"].tolist()
                answers = [[int(answer) for answer in text.split()] for text in lines["answers"]]
                assert answers == [list(row) for row in rows["prediction"]]
                right = [np.mean(np.array(a) == label) for a, label in zip(answers, lines["label"], strict=True)]
                assert lines["right"].tolist() == pytest.approx(right, abs=1e-6)

    def test_what_a_child_evaluates_is_a_model_with_its_spec_and_headline_metrics(self, story: Story) -> None:
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=f"sqlite:///{story.store.uri}/mlflow.db")
        models = {m.model_id: m for m in client.search_logged_models([story.children[0].info.experiment_id])}
        assert {model.name for model in models.values()} == NAMES and len(models) == 4
        for run in story.children:
            (linked,) = client.get_run(run.info.run_id).inputs.model_inputs
            model = models[linked.model_id]
            assert (model.name, str(model.status), model.model_type) == (
                run.info.run_name,
                "READY",
                "defended classifier",
            )
            without = {k: v for k, v in run.data.params.items() if k not in ("dataset", "images", "seed")}
            assert model.params == without
            latest: dict[str, Any] = {}
            for metric in model.metrics:
                if metric.run_id != run.info.run_id:
                    continue  # of the same model on other images
                if metric.key not in latest or metric.timestamp > latest[metric.key].timestamp:
                    latest[metric.key] = metric
            assert {key: metric.value for key, metric in latest.items()} == _headline(
                story.rows_of(run).to_dict("records")
            )
            assert {(m.dataset_name, m.dataset_digest, m.run_id) for m in latest.values()} == {
                ("digits", "72f17156a53066e1", run.info.run_id)
            }

    def test_mlflow_lists_and_serves_them_from_the_store_s_folder(self, story: Story) -> None:
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=f"sqlite:///{story.store.uri}/mlflow.db")
        parent = story.moments[-1].parent
        assert {item.path for item in client.list_artifacts(parent)} == {
            "figures",
            "report.html",
            "sweep.yaml",
            "tables",
        }
        run = story.moments[-1].runs[parent]
        assert run.info.artifact_uri.startswith((Path(story.store.uri) / "mlartifacts" / "tracked").as_uri())


@pytest.mark.usefixtures("mlflow_tables")
@pytest.mark.slow  # the fixture: MLflow makes its database in some seconds
class TestAgain:
    @pytest.mark.parametrize(("first", "second"), [(0, 1), (2, 3)], ids=["partial", "complete"])
    def test_tracking_the_same_rows_again_adds_no_row_to_any_table(
        self, story: Story, first: int, second: int
    ) -> None:
        before, after = story.moments[first], story.moments[second]
        for table in ("runs", "metrics", "latest_metrics", "params", "tags", "inputs", "datasets", "experiments"):
            assert before.counts[table] > 0
        assert after.counts == before.counts
        for table in ("metrics", "latest_metrics", "params", "tags", "inputs", "input_tags", "datasets"):
            assert after.rows[table] == before.rows[table]

    @pytest.mark.parametrize(("first", "second"), [(0, 1), (2, 3)], ids=["partial", "complete"])
    def test_tracking_the_same_rows_again_leaves_runs_and_artifacts_as_they_are(
        self, story: Story, first: int, second: int
    ) -> None:
        before, after = story.moments[first], story.moments[second]
        assert after.files == before.files  # times of change, too
        assert {key: _tracked(run) for key, run in after.runs.items()} == {
            key: _tracked(run) for key, run in before.runs.items()
        }
        assert {key: run.info.status for key, run in after.runs.items()} == {
            key: run.info.status for key, run in before.runs.items()
        }

    def test_a_new_run_takes_four_requests_a_changed_one_at_most_two_and_one_that_is_as_it_should_be_none(
        self, story: Story
    ) -> None:
        """Beside lists of runs, and two requests a new model; nobody asks for the history of a metric."""
        always = {"search_runs", "get_experiment_by_name", "get_run"}
        runs, models = len(story.moments[0].runs), 4
        new, same, changed, same_again = ({**moment.calls} for moment in story.moments)
        assert {name: n for name, n in new.items() if name not in always} == {
            "create_experiment": 1,
            "create_logged_model": models,
            "finalize_logged_model": models,
            "search_logged_models": 2,  # before and after
            "create_run": runs,
            "log_batch": runs,
            "log_inputs": runs - 1,  # the parent has no data set
            "set_terminated": runs,
        }
        assert set(same) <= always and set(same_again) <= always and same["get_run"] == 1
        assert {name: n for name, n in changed.items() if name not in always} == {
            "update_run": 1,  # the parent runs again
            "search_logged_models": 1,
            "log_batch": runs,
            "set_terminated": runs,
        }

    def test_what_reaches_mlflow_s_store_is_counted_there_too(self, story: Story, tmp_path: Path) -> None:
        """Of 36 seeds of one defence: 37 runs took 765 calls once, and take four each and a few for the list."""
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        cells = story.sweep.cells[:1]
        curves = {"c": {0: Point(1.0), 9: Point(0.5)}}
        runs = [
            Run(f"{n:016x}", f"seed {n}", True, {}, {"n": n}, {"m": 1.0}, curves, {}, cell)
            for n, cell in enumerate(cells * 36)
        ]
        calls, within = Counter[str](), list[str]()

        def counting(name: str, real: Any) -> Any:
            def counted(store: Any, *arguments: Any, **options: Any) -> Any:
                calls[name] += not within  # what the store asks of itself is no request
                within.append(name)
                try:
                    return real(store, *arguments, **options)
                finally:
                    within.pop()

            return counted

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("workflows.tracking.runs._LISTED_SECONDS", 1e9)  # a busy machine looks for other drivers
            for name in [name for name in dir(SqlAlchemyStore) if name.split("_")[0] in _VERBS]:
                patch.setattr(SqlAlchemyStore, name, counting(name, getattr(SqlAlchemyStore, name)))
            client = BoundedClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
            log = RunLog(client, story.sweep, Places(tmp_path))
            log.write(Run(story.sweep.id, "parent", True), runs)
            assert not log.another_driver_won()
        assert calls["log_batch"] == calls["create_run"] == calls["update_run_info"] == 37
        assert calls["log_inputs"] == 36 and "get_metric_history" not in calls
        assert calls.total() == 4 * 37 - 1 + 6  # lists of runs, and the experiment

    def test_logging_that_was_interrupted_anywhere_is_finished_by_the_next(
        self, story: Story, tmp_path: Path
    ) -> None:
        """Stopped before each of its requests in turn, then left to itself: as if it had never been stopped."""
        uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
        analysis, method = other(story, tmp_path), BoundedClient.__getattr__
        left = 0
        for stop in range(200):
            left = stop

            def until(client: BoundedClient, name: str) -> Any:
                nonlocal left
                left -= 1
                if left < 0:
                    raise InterruptedError(name)
                return method(client, name)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(BoundedClient, "__getattr__", until)
                try:
                    parent = track(uri, analysis, versions={"python": "3.x", "torch": "2.y"}, pages=PAGES)
                    break
                except InterruptedError:
                    pass
        assert stop > 8  # each time it went further
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=uri)
        runs = {run.info.run_name: run for run in client.search_runs([client.get_run(parent).info.experiment_id])}
        wanted = story.moments[-1].runs
        assert len(runs) == len(wanted) == 5
        for run in wanted.values():
            mine = runs[run.info.run_name]
            assert mine.data.metrics == run.data.metrics and mine.data.params == run.data.params
            assert mine.data.tags["puregrid.run"] == run.data.tags["puregrid.run"]
            assert mine.info.status == "FINISHED" and mine.info.end_time == run.info.end_time
            linked = client.get_run(mine.info.run_id).inputs.model_inputs
            assert len(linked) == (run.info.run_name != "tracked")
            for name in mine.data.metrics:
                history = [(point.step, point.value) for point in client.get_metric_history(mine.info.run_id, name)]
                assert len(history) == len(set(history))
        models = client.search_logged_models([runs["tracked"].info.experiment_id])
        assert {model.name for model in models} == NAMES and len(models) == 4
        assert {str(model.status) for model in models} == {"READY"}

    def test_runs_of_an_earlier_version_are_taken_over_with_their_ids(self, story: Story, tmp_path: Path) -> None:
        from mlflow import MlflowClient

        uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
        analysis = other(story, tmp_path)
        track(uri, analysis)
        client = MlflowClient(tracking_uri=uri)
        experiment = client.get_experiment_by_name("tracked").experiment_id
        before = {}
        for run in client.search_runs([experiment]):
            sweep, key, _ = run.data.tags["puregrid.run"].split()
            before[run.info.run_name] = run.info.run_id
            client.delete_tag(run.info.run_id, "puregrid.run")
            for name, value in (("key", key), ("sweep_id", sweep), ("curves", "1"), ("artifact.sweep.yaml", "2")):
                client.set_tag(run.info.run_id, f"puregrid.{name}", value)
        parent = track(uri, analysis)
        runs = {run.info.run_name: run for run in client.search_runs([experiment])}
        assert {name: run.info.run_id for name, run in runs.items()} == before and parent == before["tracked"]
        for run in runs.values():
            mine = {tag for tag in run.data.tags if not tag.startswith("mlflow.")}
            assert mine == {"puregrid.run"} | ({"puregrid.complete"} if run.info.run_name == "tracked" else set())

    def test_two_drivers_without_a_lock_share_the_runs_and_each_is_there_once(
        self, story: Story, tmp_path: Path
    ) -> None:
        """The second begins two runs and ends one of them after the first has asked what is there."""
        from mlflow import MlflowClient

        uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
        client, sweep = BoundedClient(uri), story.sweep
        first, second = (RunLog(client, sweep, Places(tmp_path)) for _ in range(2))
        parent, *children = (
            Run(
                f"key-{n}",
                f"run {n}",
                True,
                params={"n": n},
                metrics={"m": float(n)},
                curves={"c": {0: Point(1.0), 1: Point(n)}},
            )
            for n in range(6)
        )
        second._begin(children[3], None)
        second.write(children[4], [])
        first._listed_at = -1e9
        first.write(parent, children)
        assert not first.another_driver_won()
        runs = {run.info.run_name: run for run in MlflowClient(tracking_uri=uri).search_runs([first._experiment])}
        assert sorted(runs) == [f"run {n}" for n in range(6)]
        for n, (_, run) in enumerate(sorted(runs.items())):
            assert run.data.metrics == {"m": float(n), "c": float(n)} and run.info.status == "FINISHED"
            assert len(client.get_metric_history(run.info.run_id, "m")) == 1
            assert [point.step for point in client.get_metric_history(run.info.run_id, "c")] == [0, 1]

    def test_new_rows_update_the_same_runs(self, story: Story) -> None:
        partial, complete = story.moments[1], story.moments[2]
        assert set(partial.runs) == set(complete.runs)
        assert complete.counts["params"] == partial.counts["params"]
        assert complete.counts["inputs"] == partial.counts["inputs"]
        assert complete.counts["metrics"] > partial.counts["metrics"]
        # Several attacks are compared on complete cells alone.
        new = {path.split("/artifacts/")[1] for path in set(complete.files) - set(partial.files)}
        assert new == {"tables/combined.csv"}
        assert set(partial.files) < set(complete.files)
        changed = {path for path in partial.files if partial.files[path] != complete.files[path]}
        assert {path.split("/artifacts/")[1] for path in changed} == {
            "tables/accuracy.json",
            "tables/cost.csv",
            "tables/images.json",
            "tables/leaderboard.csv",
            "tables/robustness.csv",
            "tables/tables.json",
            "tables/tables.md",
        }

    def test_a_sweep_with_missing_units_has_failed_and_a_complete_one_is_finished(self, story: Story) -> None:
        statuses = [{run.info.status for run in moment.runs.values()} for moment in story.moments]
        assert statuses == [{"FAILED"}, {"FAILED"}, {"FINISHED"}, {"FINISHED"}]
        told = [moment.runs[moment.parent].data.tags["puregrid.complete"] for moment in story.moments]
        assert told == ["false", "false", "true", "true"]

    def test_only_the_child_with_missing_units_has_failed(self, story: Story, tmp_path: Path) -> None:
        """From fabricated frames: one defence of four lacks images."""
        moment = story.moments[-1]
        frame = moment.analysis.robustness.copy()
        lacking = (frame["classifier"] == "shifted") & (frame["defence"] == "none")
        assert lacking.sum() == ATTACKS + 1
        frame.loc[lacking, "images"] = 19
        uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
        analysis = other(story, tmp_path)
        analysis.robustness = frame
        parent = track(uri, analysis)
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=uri)
        experiment = client.get_experiment_by_name("tracked")
        statuses = {run.info.run_name: run.info.status for run in client.search_runs([experiment.experiment_id])}
        failed = {"tracked", "shifted · none"}
        assert statuses == {name: "FAILED" if name in failed else "FINISHED" for name in {*NAMES, "tracked"}}
        assert client.get_run(parent).data.tags["puregrid.complete"] == "false"

    def test_another_sweep_of_the_same_name_is_another_parent_in_the_same_experiment(
        self, story: Story, tmp_path: Path
    ) -> None:
        """And two splits of one data set are two children, not one that is overwritten."""
        (tmp_path / "s.yaml").write_text(
            "sweep: tracked\n"
            "datasets: [{dataset: digits, images: {first: 2}}, {dataset: digits, split: train, images: {first: 4}}]\n"
            "classifiers: [digits-cnn]\ndefences: [none]\nchunk: 2\n"
        )
        sweep = load_sweep(tmp_path / "s.yaml")
        store = Store(str(tmp_path / "store"))
        _compute(make_plan(sweep), store, last_chunks=False)
        _compute(make_plan(sweep), store, last_chunks=True)
        uri = f"sqlite:///{story.store.uri}/mlflow.db"
        parent = track(uri, Analysis(Results(store, sweep), audit=False))
        assert parent != story.moments[-1].parent
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=uri)
        assert client.get_run(parent).info.experiment_id == story.children[0].info.experiment_id
        runs = client.search_runs([client.get_run(parent).info.experiment_id])
        children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent]
        assert sorted(run.data.params["images"] for run in children) == ["2", "4"]
        tags = [{tag.key: tag.value for tag in run.inputs.dataset_inputs[0].tags} for run in children]
        assert sorted(found["images"] for found in tags) == ["2", "4"]


@pytest.mark.usefixtures("mlflow_tables")
@pytest.mark.slow  # the fixture
class TestFindings:
    def test_they_are_on_the_parent_and_named_on_the_children_that_they_concern(
        self, story: Story, tmp_path: Path
    ) -> None:
        """Logged twice, then gone, as after a better attack."""
        from mlflow import MlflowClient

        bare = [cell.id for cell in story.sweep.cells if cell.defence.purifier.purifier == "none"]
        every = tuple(cell.id for cell in story.sweep.cells)
        found = [
            Finding("above-it", "error", tuple(bare), "Text.", {"p": 0.001}, "Do."),
            Finding("few-images", "note", every, "Few.", {"images": 20}, "More."),
        ]
        uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
        client = MlflowClient(tracking_uri=uri)

        def state(findings: list[Finding]) -> tuple[Any, dict[str, set[str]]]:
            analysis = other(story, tmp_path, audit=True)
            analysis.findings = findings
            parent = track(uri, analysis)
            run = client.get_run(parent)
            tags: dict[str, set[str]] = {}
            for child in client.search_runs([run.info.experiment_id]):
                if child.info.run_id != parent:
                    name = child.info.run_name.split(" · ")[1]
                    tags.setdefault(name, set()).add(child.data.tags["puregrid.findings"])
            return run, tags

        for _ in range(2):
            run, tags = state(found)
            assert {k: v for k, v in run.data.metrics.items() if k.startswith("findings/")} == {
                "findings/error": 1.0,
                "findings/warning": 0.0,
                "findings/note": 1.0,
            }
            path = client.download_artifacts(run.info.run_id, "findings.json", str(tmp_path))
            assert json.loads(Path(path).read_text()) == [finding.as_dict() for finding in found]
            assert tags == {
                "none": {"error: above-it; note: few-images"},
                "diffpure t*=40 in 2 steps": {"note: few-images"},
            }
            assert len(client.get_metric_history(run.info.run_id, "findings/error")) == 1
        run, tags = state([])
        assert run.data.metrics["findings/error"] == 0 and set.union(*tags.values()) == {"none"}
        path = client.download_artifacts(run.info.run_id, "findings.json", str(tmp_path))
        assert json.loads(Path(path).read_text()) == []

    def test_without_an_audit_no_finding_is_mentioned(self, story: Story) -> None:
        for run in story.moments[-1].runs.values():
            assert "puregrid.findings" not in run.data.tags
            assert not any(key.startswith("findings/") for key in run.data.metrics)


@pytest.mark.usefixtures("mlflow_tables")
@pytest.mark.slow  # the fixture
class TestSeveralAttacks:
    def test_children_have_the_metrics_of_all_attacks_of_a_budget_together(
        self, story: Story, tmp_path: Path
    ) -> None:
        from mlflow import MlflowClient

        combined = Results(story.store, story.sweep).combined()
        assert len(combined) == 4 and set(combined["attacks"]) == {2}  # two step sizes of one budget
        uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
        client = MlflowClient(tracking_uri=uri)
        parent = track(uri, other(story, tmp_path))
        seen = 0
        for child in client.search_runs([client.get_run(parent).info.experiment_id]):
            if child.info.run_id == parent:
                continue
            classifier, defence = child.info.run_name.split(" · ")
            (line,) = combined[(combined["classifier"] == classifier) & (combined["defence"] == defence)].to_dict(
                "records"
            )
            where = "2 attacks linf eps 26 of 255"
            for name in ("lowest", "selected", "fixed_aa_mean", "fixed_aa_any"):
                assert child.data.metrics[f"{name}/{where}"] == line[name]
            seen += 1
        assert seen == 4


class TestDefaultUri:
    @pytest.fixture(autouse=True)
    def without_variable(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def test_a_local_store_holds_its_own_database(self) -> None:
        assert default_uri("/data/results") == "sqlite:////data/results/mlflow.db"
        assert default_uri("results") == "sqlite:///results/mlflow.db"

    @pytest.mark.parametrize("store", ["s3://bucket/results", "gs://bucket", "memory://x"])
    def test_a_bucket_has_none(self, store: str) -> None:
        assert default_uri(store) is None

    @pytest.mark.parametrize("store", ["/data/results", "s3://bucket/results"])
    def test_the_environment_comes_first(self, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking:5000")
        assert default_uri(store) == "http://tracking:5000"

    def test_an_empty_variable_is_as_good_as_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
        assert default_uri("/data/results") == "sqlite:////data/results/mlflow.db"
