"""A store of an older version opens, its rows are believed, and nothing of it is computed again.

``data/old_store`` was written before row files of one kind of stage had one schema: its rows of attacks have as many
columns as each attack gave. It has rows of every kind of stage.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from tasks.stages import ROW_SCHEMAS, StageSpec
from workflows.analysis import Analysis
from workflows.audit.view import View, views
from workflows.cli import app
from workflows.engine.run import verified
from workflows.engine.worker import UnitWorker
from workflows.grid.load import Sweep, load_sweep
from workflows.planning.plan import Plan, make_plan
from workflows.results.compact import compact, row_files
from workflows.results.reader import Results
from workflows.store import Store

FOLDER = Path(__file__).parent / "data" / "old_store"
FILE = FOLDER / "sweep.yaml"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    with tarfile.open(FOLDER / "store.tar.xz") as archive:
        archive.extractall(tmp_path / "store", filter="data")
    return Store(str(tmp_path / "store"))


@pytest.fixture(scope="module")
def sweep() -> Sweep:
    return load_sweep(FILE)


def units(plan: Plan) -> Iterator[tuple[StageSpec, str, str]]:
    for stage in plan.stages:
        for chunk in stage.chunks:
            yield stage.spec, stage.id, chunk.name


def test_it_holds_every_kind_of_stage_and_its_attacks_have_unlike_columns(store: Store, sweep: Sweep) -> None:
    rows = {spec.label(): store.read_rows(spec.stage, key, chunk) for spec, key, chunk in units(make_plan(sweep))}
    # Its version had no probe.
    assert {spec.stage for spec, *_ in units(make_plan(sweep))} == set(ROW_SCHEMAS) - {"probe"}
    attacks = [set(table.column_names) for table in rows.values() if "adversarial_prediction" in table.column_names]
    assert len(attacks) == 7 and len(set(map(frozenset, attacks))) > 2
    assert all(names < set(ROW_SCHEMAS["attack"].arrow.names) for names in attacks)


@pytest.mark.slow
def test_plan_says_that_nothing_is_to_compute(store: Store) -> None:
    result = CliRunner().invoke(app, ["plan", str(FILE), "--store", store.uri])
    assert result.exit_code == 0, result.stderr
    assert "38 of them distinct; 38 committed, 0 to compute" in result.stdout
    found = json.loads(CliRunner().invoke(app, ["plan", str(FILE), "--store", store.uri, "--json"]).stdout)
    assert (found["committed"], found["missing"]) == (38, 0)


@pytest.mark.slow
def test_every_row_is_believed_and_run_computes_nothing(store: Store, sweep: Sweep) -> None:
    said: list[str] = []
    assert len(verified(make_plan(sweep), store, said.append)) == 38 and not said
    result = CliRunner().invoke(app, ["run", str(FILE), "--store", store.uri, "--mlflow", "off"])
    assert result.exit_code == 0, result.stderr
    assert "38 committed, 0 to compute" in result.stderr and "clean" in result.stdout


@pytest.mark.slow
def test_what_is_made_of_the_rows_reads_them(store: Store, sweep: Sweep) -> None:
    results = Results(store, sweep)
    analysis = Analysis(results)
    assert len(analysis.robustness) == 8 and (analysis.robustness["images"] == 2).all()
    cost = analysis.cost.set_index("stage")
    assert cost.loc["attack", "classifier_evaluations"].sum() == _evaluations(store, sweep)
    ladder = next(cell for cell in sweep.adversarial if cell.attack is not None and cell.attack.attack == "ladder")
    frame = results.attack_rows(ladder)
    assert list(frame.columns) == ROW_SCHEMAS["attack"].arrow.names
    assert frame["attack_rung"].tolist() == [0, 0] and frame["attack_flow"].isna().all()
    rules = {finding.rule for finding in analysis.findings}
    # Rows that never said how many gradients were zero are no evidence of any.
    assert "few-images" in rules and not rules & {"zero-gradients", "gradients-not-finite", "nan-loss"}


def test_what_an_attack_reports_is_found_by_name_and_not_where_rows_lack_it(store: Store, sweep: Sweep) -> None:
    view = next(view for view in views(Results(store, sweep)) if view.attack is not None)
    rows = view.attack_rows.assign(
        attack_gradients=[3, None],
        attack_minimum_l2=[0.5, np.nan],
        attack_extra=[[("score", [0.25]), ("trace", [1.0, 2.0])], [("score", [4.0]), ("trace", [1.0, 2.0])]],
    )

    class Changed(View):
        @property
        def attack_rows(self) -> pd.DataFrame:
            return rows

    view = Changed(view.cell, view.ids, view.results)
    score, norm = view.reported("score"), view.reported("minimum_l2")
    assert score is not None and score.tolist() == [0.25, 4.0]
    assert norm is not None and norm[0] == 0.5 and np.isnan(norm[1])
    for name in ("gradients", "flow", "trace", "nothing"):  # lacking, null, several values, unknown
        assert view.reported(name) is None


@pytest.mark.slow
def test_a_copy_of_an_older_version_is_made_again_with_all_columns(store: Store, sweep: Sweep) -> None:
    first = compact(store, sweep)
    assert first.written == first.files > 7 and compact(store, sweep).written == 0
    path = next(Path(first.folder).glob("attack/*.parquet"))
    table = pq.read_table(path)
    metadata = {key: value for key, value in table.schema.metadata.items() if b"schema_version" not in key}
    pq.write_table(table.drop_columns(["attack_extra"]).replace_schema_metadata(metadata), path)
    assert compact(store, sweep).written == 1 and "attack_extra" in pq.read_schema(path).names


def _evaluations(store: Store, sweep: Sweep) -> int:
    stages = [(key, chunk) for spec, key, chunk in units(make_plan(sweep)) if spec.stage == "attack"]
    return sum(sum(store.read_rows("attack", *stage)["classifier_evaluations"].to_pylist()) for stage in stages)


def _units_of(plan: Plan, store: Store, *kinds: str) -> list[str]:
    """Compute what is missing; returns the chunks of the units of some kinds that were computed."""
    worker, computed = UnitWorker(store.uri, "cpu"), []
    for stage in plan.stages:
        inputs = {role: (plan.stages[i].spec.stage, plan.stages[i].id) for role, i in stage.inputs.items()}
        for chunk in stage.chunks:
            if worker.run(stage.spec, stage.id, chunk, inputs).computed and stage.spec.stage in kinds:
                computed.append(chunk.name)
    return computed


@pytest.mark.slow  # six attacks and their judgements
def test_growing_the_sweep_keeps_its_rows_and_old_and_new_files_are_one_table(store: Store, tmp_path: Path) -> None:
    kept = [line for line in FILE.read_text().splitlines() if not line.startswith(("corruptions", "certificates"))]
    (tmp_path / "grown.yaml").write_text("\n".join(kept).replace("../../../../", f"{Path(__file__).parents[2]}/"))
    grown = load_sweep(tmp_path / "grown.yaml", ["datasets.0.images.first=4", "quality=false"])
    plan = make_plan(grown)
    old = plan.stages[0].chunks[0].name
    before = {key: store.committed(spec.stage, key, chunk) for spec, key, chunk in units(plan) if chunk == old}
    computed = _units_of(plan, store, "attack")
    assert len(computed) == 7 and old not in computed
    assert {
        key: store.committed(spec.stage, key, chunk) for spec, key, chunk in units(plan) if chunk == old
    } == before

    files = row_files(store, grown, "attack")
    table = ds.dataset(files, schema=ROW_SCHEMAS["attack"].arrow).to_table().to_pandas()
    folder = compact(store, grown).folder
    copied: Any = pd.read_parquet(f"{folder}/attack").drop(columns=["stage_id", "chunk"])
    for frame in (table, copied):
        assert list(frame.columns) == ROW_SCHEMAS["attack"].arrow.names and len(frame) == 28
        assert frame["attack_rung"].notna().sum() == 12 and frame["attack_flow"].notna().sum() == 4
    cells = [cell for cell in grown.adversarial if cell.attack is not None]
    for cell in cells:
        rows = Results(store, grown).attack_rows(cell)
        assert rows["image_id"].tolist() == [0, 1, 2, 3] and np.isfinite(rows["linf"]).all()
    assert (Analysis(Results(store, grown)).robustness["images"] == 4).all()


@pytest.mark.slow  # one attack
def test_an_old_attack_that_is_computed_again_gives_the_same_values_and_images(store: Store, sweep: Sweep) -> None:
    """Its rows have more columns, so their file has other bytes; what says what its images are is the same."""
    stage = next(stage for stage in make_plan(sweep).stages if "stadv" in stage.spec.label())
    unit = ("attack", stage.id, stage.chunks[0].name)
    rows, images = store.read_rows(*unit), store.read_images(*unit)
    store.revoke(*unit)
    assert UnitWorker(store.uri, "cpu").run(stage.spec, stage.id, stage.chunks[0], {}).computed
    again = store.read_rows(*unit)
    assert again.schema.equals(ROW_SCHEMAS["attack"].arrow)
    assert (again.schema.metadata[b"puregrid.schema_version"], rows.schema.metadata[b"puregrid.schema_version"]) == (
        b"2",
        b"1",
    )
    for name in rows.column_names:  # to what other processors round otherwise
        np.testing.assert_allclose(again[name].to_pylist(), rows[name].to_pylist(), rtol=1e-3)
    assert store.read_images(*unit).schema.equals(images.schema, check_metadata=True)
