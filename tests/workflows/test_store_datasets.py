"""The rows of a sweep as one data set: pandas, pyarrow and DuckDB read the same, before and after compaction."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec
import pandas as pd
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from helpers_small import SMALL, compute, small_sweep
from typer.testing import CliRunner

from defense.errors import StoreError
from workflows.cli import app
from workflows.grid.load import Sweep
from workflows.results.compact import compact, row_files
from workflows.results.reader import Results
from workflows.store import Store

if TYPE_CHECKING:
    import duckdb
    from s3_server import S3Server


@pytest.fixture(scope="module")
def computed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Sweep]:
    folder = tmp_path_factory.mktemp("small")
    sweep = small_sweep(folder)
    compute(sweep, str(folder / "results"))
    return folder / "results", sweep


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, computed: tuple[Path, Sweep], tmp_path: Path) -> Store:
    """The sweep's rows with litter beside them: what a dead or beaten attempt left is in no data set."""
    uri = request.getfixturevalue("s3").new_bucket() if request.param == "s3" else str(tmp_path / "results")
    made = Store(uri)
    for path in computed[0].rglob("*"):
        if path.is_file():
            made.files.write(str(path.relative_to(computed[0])), path.read_bytes())
    stage = computed[1].cells[0].evaluate
    chunk = computed[1].cells[0].images.chunks[0].name
    rows = made.files.read(made.rows_path("evaluate", stage.id, chunk))
    made.files.write(f"rows/evaluate/{stage.id}/{chunk}.0123456789ab.parquet", rows)
    made.files.write(f"rows/evaluate/{stage.id}/9999999-abcdefabcd.parquet", rows)
    return made


@pytest.fixture
def sweep(computed: tuple[Path, Sweep]) -> Sweep:
    return computed[1]


def database(store: Store) -> duckdb.DuckDBPyConnection:
    import duckdb  # here: what is imported before the tests run is frozen in conftest.py, which it takes for a leak

    connection = duckdb.connect()
    if store.uri.startswith("s3://"):
        connection.register_filesystem(fsspec.filesystem("s3"))
    return connection


def truth(store: Store, sweep: Sweep) -> pd.DataFrame:
    """The rows of all cells as puregrid's own reader gives them."""
    results = Results(store, sweep)
    frames = [results.rows(cell).assign(stage_id=cell.evaluate.id) for cell in sweep.cells]
    return ordered(pd.concat(frames))


def ordered(frame: pd.DataFrame) -> pd.DataFrame:
    by = [name for name in ("stage_id", "image_id", "label", "mean_probability") if name in frame.columns]
    frame = frame.assign(mean_probability=[tuple(map(float, each)) for each in frame["mean_probability"]])
    frame = frame.assign(prediction=[tuple(map(int, each)) for each in frame["prediction"]])
    return frame.sort_values(by).reset_index(drop=True)


COLUMNS = ["image_id", "label", "prediction", "mean_probability", "denoiser_evaluations"]


def same(found: pd.DataFrame, expected: pd.DataFrame, columns: list[str]) -> None:
    assert ordered(found[columns])[columns].to_dict("list") == ordered(expected[columns])[columns].to_dict("list")


def test_row_files_are_one_data_set_before_compaction(store: Store, sweep: Sweep) -> None:
    files = row_files(store, sweep)
    expected = truth(store, sweep)
    assert len(files) == len(set(files)) == 4 * 3 and len(expected) == 4 * 20
    same(pd.concat(map(pd.read_parquet, files)), expected, COLUMNS)
    system, root = fsspec.core.url_to_fs(store.uri)
    paths = [file.removeprefix("s3://") for file in files]
    assert root in paths[0]
    same(ds.dataset(paths, filesystem=system).to_table().to_pandas(), expected, COLUMNS)
    with database(store) as connection:
        same(connection.read_parquet(files).df(), expected, COLUMNS)
        count = connection.execute("SELECT count(*) FROM read_parquet(?)", [files]).fetchone()
    assert count == (80,)
    attacks = row_files(store, sweep, "attack")
    assert len(attacks) == 3 and row_files(store, sweep, "certify") == []
    # The folder as a whole holds litter: that is why the commits choose the files.
    assert len(store.files.names(f"rows/evaluate/{sweep.cells[0].evaluate.id}")) == 5


def test_compacted_rows_are_one_data_set_with_the_cells_beside(store: Store, sweep: Sweep) -> None:
    made = compact(store, sweep)
    assert (made.files, made.rows, made.units, made.written, made.missing) == (5, 100, 15, 5, 0)
    assert made.folder == f"{store.uri}/compact/{sweep.id}"
    expected, columns = truth(store, sweep), ["stage_id", *COLUMNS]
    same(pd.read_parquet(f"{made.folder}/evaluate"), expected, columns)
    system, folder = fsspec.core.url_to_fs(f"{made.folder}/evaluate")
    same(ds.dataset(folder, filesystem=system).to_table().to_pandas(), expected, columns)
    with database(store) as connection:
        same(connection.read_parquet(f"{made.folder}/evaluate/*.parquet").df(), expected, columns)
        table = connection.execute(
            f"""
            SELECT defence, attack, eps, count(*) AS n,
                   avg(list_avg(list_transform(prediction, lambda p: (p = label)::INT))) AS share
            FROM '{made.folder}/evaluate/*.parquet' JOIN '{made.folder}/cells.parquet' USING (stage_id)
            GROUP BY ALL
            """
        ).df()
    shown = Results(store, sweep).robustness()
    assert len(table) == len(shown) == 4
    merged = table.merge(shown, on=["defence", "attack", "eps"])
    assert list(merged["share"]) == pytest.approx(list(merged["avg"])) and len(merged) == 4
    assert list(merged["n"]) == list(merged["images"]) == [20] * 4


def test_compaction_changes_nothing_that_puregrid_reads_and_is_made_once(store: Store, sweep: Sweep) -> None:
    before = Results(store, sweep).robustness()
    compact(store, sweep)
    for cell in sweep.cells:
        for chunk in cell.images.chunks:
            assert store.problem("evaluate", cell.evaluate.id, chunk.name) is None
    pd.testing.assert_frame_equal(Results(store, sweep).robustness(), before)
    again = compact(store, sweep)
    assert again.written == 0 and (again.files, again.rows) == (5, 100)
    path = f"compact/{sweep.id}/evaluate/{sweep.cells[0].evaluate.id}.parquet"
    good = store.files.read(path)
    store.files.write(path, good[:100])  # a copy that is damaged is made again
    assert compact(store, sweep).written == 1 and store.files.read(path) == good


def test_damaged_rows_are_never_compacted(store: Store, sweep: Sweep) -> None:
    stage_id, chunk = sweep.cells[-1].evaluate.id, sweep.cells[-1].images.chunks[1].name
    path = store.rows_path("evaluate", stage_id, chunk)
    content = store.files.read(path)
    store.files.write(path, content[:-5] + b"12345")
    with pytest.raises(StoreError, match=f"{path} .* is not the file that was committed"):
        compact(store, sweep)
    assert not store.files.exists(f"compact/{sweep.id}/evaluate/{stage_id}.parquet")


def test_a_compacted_file_of_other_commits_is_made_again(store: Store, sweep: Sweep) -> None:
    stage_id, chunk = sweep.cells[-1].evaluate.id, sweep.cells[-1].images.chunks[1].name
    first = compact(store, sweep)
    store.revoke("evaluate", stage_id, chunk)
    part = compact(store, sweep)
    assert (part.written, part.missing, part.rows) == (1, 1, first.rows - 8)
    rows = pd.read_parquet(f"{part.folder}/evaluate/{stage_id}.parquet")
    assert len(rows) == 12 and chunk not in set(rows["chunk"])
    compute(sweep, store.uri)
    whole = compact(store, sweep)
    assert (whole.written, whole.missing, whole.rows) == (1, 0, first.rows)
    # Its metadata says of which rows it is.
    system, path = fsspec.core.url_to_fs(f"{whole.folder}/evaluate/{stage_id}.parquet")
    with system.open(path) as file:
        metadata = pq.read_schema(file).metadata
    commit = store.committed("evaluate", stage_id, chunk)
    assert commit is not None
    hashes = json.loads(metadata[b"puregrid.commits"])
    assert hashes[chunk] in commit.sha256.values() and len(hashes) == 3
    assert metadata[b"puregrid.stage_id"] == stage_id.encode()


def test_the_command_says_where_the_data_set_is_and_what_is_missing(
    computed: tuple[Path, Sweep], tmp_path: Path
) -> None:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    uri = str(computed[0])
    shown = CliRunner().invoke(app, ["compact", str(path), "--store", uri])
    assert shown.exit_code == 0 and shown.stdout == f"{uri}/compact/{computed[1].id}\n"
    assert "100 rows of 15 units in 5 files, 5 of them new" in shown.stderr and "missing" not in shown.stderr
    empty = CliRunner().invoke(app, ["compact", str(path), "--store", str(tmp_path / "none"), "--json"])
    assert json.loads(empty.stdout)["missing"] == 15 and "15 units of the sweep are not committed" in empty.stderr


def snippets() -> list[str]:
    text = (Path(__file__).parents[2] / "docs" / "store.md").read_text()
    return [each for each in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "SWEEP.yaml" in each]


def test_the_snippets_of_the_documentation_run_and_agree(
    computed: tuple[Path, Sweep], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "SWEEP.yaml").write_text(SMALL)
    (tmp_path / "results").symlink_to(computed[0])
    monkeypatch.chdir(tmp_path)
    before, after = snippets()
    expected = truth(Store("results"), computed[1])
    for text, columns in ((before, COLUMNS), (after, ["stage_id", *COLUMNS])):
        names: dict[str, Any] = {}
        exec(text, names)
        for name in ("by_pandas", "by_pyarrow", "by_duckdb"):
            same(names[name], expected, columns)
    shown = Results(Store("results"), computed[1]).robustness()
    assert sorted(names["accuracy"]["accuracy"]) == pytest.approx(sorted(shown["avg"]))


def test_a_bucket_is_listed_twice_a_stage_and_no_commit_is_read(
    s3: S3Server, computed: tuple[Path, Sweep], sweep: Sweep
) -> None:
    store = Store(s3.new_bucket())
    for kind in ("rows", "commits"):
        for path in (computed[0] / kind).rglob("*.*"):
            store.files.write(str(path.relative_to(computed[0])), path.read_bytes())
    s3.requests.clear()
    assert len(row_files(store, sweep)) == 12
    assert s3.requests == {"GET": 2 * 4}
