"""Row files of one kind of stage have one schema, whatever the attack; older files are read with it."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

import tasks.attacks
from defense import ClassifierConfig, NoPurifierConfig, Omega
from defense.denoisers.oracle import OracleConfig
from defense.errors import InvalidInput
from tasks.attacks import ATTACKS, AttackConfig, AttackResult, DerivedAttackConfig, Given, Target
from tasks.attacks.region import Norm
from tasks.certificates import CertificateConfig
from tasks.compute import Compute, Context
from tasks.corruptions.config import CorruptionConfig
from tasks.datasets import DatasetConfig
from tasks.stages import (
    ROW_SCHEMAS,
    AttackStage,
    CertifyStage,
    Chunk,
    CorruptStage,
    EvaluateStage,
    Output,
    ProbeStage,
    QualityStage,
    SampleStage,
    SequenceStage,
    Smoothed,
    StageSpec,
)
from tasks.stages.quality import QualityConfig

CHUNK = Chunk((3, 17))
ATTACK = ROW_SCHEMAS["attack"].arrow
LINF: dict[str, Any] = {"norm": "linf", "eps": 0.1}
SMALL: dict[str, dict[str, Any]] = {
    "apgd": {**LINF, "steps": 2},
    "autoattack": {"norm": "linf", "eps": 0.1, "version": "custom", "attacks": ["apgd-ce"]},
    "bpda-eot": {**LINF, "steps": 1},
    "cw-l2": {"norm": "l2", "eps": 1.0, "steps": 2, "binary_search_steps": 1},
    "deviated-reconstruction": {**LINF, "steps": 2, "losses": ["ce"]},
    "diffhammer": {**LINF, "steps": 2, "losses": ["ce"]},
    "fgsm": LINF,
    "ladder": {**LINF, "rungs": ["blind"], "steps": 1, "select": 1},
    "strongest": {**LINF, "rungs": ["blind"], "steps": 1, "select": 1},
    "one-step-preview": {
        **LINF,
        "denoiser": OracleConfig(schedule="linear-1000", stds=(0.4,)),
        "steps": 1,
        "previews": 1,
        "renoised": 1,
    },
    "pgd": {**LINF, "steps": 1},
    "pgd-eot": {**LINF, "steps": 1},
    "random-noise": LINF,
    "guidance-target": {**LINF, "steps": 1},
    "hop-skip-jump": {**LINF, "queries": 4},
    "rays": {**LINF, "queries": 4},
    "spsa": {**LINF, "steps": 1, "samples": 2},
    "square": {**LINF, "queries": 2},
    "stadv": {"norm": "flow", "eps": 1.0, "steps": 1},
    "transfer": {**LINF, "source": {"attack": "pgd", "steps": 1}, "classifier": "digits-cnn"},
}
OWN = {
    "autoattack": {"attack_broken"},
    "cw-l2": {"attack_minimum_l2"},
    "ladder": {"attack_rung", "attack_right", "attack_rights"},
    "strongest": {"attack_rung", "attack_right", "attack_rights"},
    "stadv": {"attack_flow"},
}
GRADIENTS = {"attack_gradients", "attack_gradient_zero", "attack_gradient_nan"}


class TellingConfig(AttackConfig):
    """Somebody's attack, which says of its images what puregrid has no column for."""

    norms: ClassVar[tuple[Norm, ...]] = ("linf",)
    attack: Literal["telling"] = "telling"
    clash: bool = False

    @property
    def evaluations(self) -> int:
        return 0

    def run(self, target: Target, x: Tensor, omega: Omega) -> AttackResult:
        count = torch.arange(len(x))
        columns = {"score": count / 4, "trace": torch.stack([count, 10 * count], 1), "met": count > 0}
        if self.clash:
            columns = {"rung": torch.tensor([0.25] * len(x))}
        return AttackResult(x, torch.zeros(len(x)), columns=columns)


@pytest.fixture
def attacked(digits: DatasetConfig, cnn: ClassifierConfig, context: Context) -> Callable[[AttackConfig], Output]:
    def stage(attack: AttackConfig, sources: tuple[AttackStage, ...] = ()) -> AttackStage:
        fields: dict[str, Any] = {"dataset": digits, "classifier": cnn, "attack": attack, "sources": sources}
        return AttackStage(**fields, seed=0, compute=Compute(batch=2))

    def computed(attack: AttackConfig) -> Output:
        if not isinstance(attack, DerivedAttackConfig):
            return stage(attack).run(CHUNK, {}, context)
        sources = tuple(stage(source.on_bare_classifier()) for source in _sources(attack))
        outputs = [source.run(CHUNK, {}, context) for source in sources]
        return stage(attack, sources).run(CHUNK, {f"source {i}": _joined(o) for i, o in enumerate(outputs)}, context)

    return computed


def _sources(attack: DerivedAttackConfig) -> tuple[AttackConfig, ...]:
    rungs = attack.parameter("rungs")
    return tuple(rungs) if rungs else (attack.parameter("source"),)


def _joined(output: Output) -> pa.Table:
    table = output.images
    assert table is not None
    for name in output.rows.column_names[1:]:
        table = table.append_column(output.rows.schema.field(name), output.rows[name])
    return table


def _config(name: str) -> AttackConfig:
    return ATTACKS.get(name)(attack=name, **SMALL[name]).on_bare_classifier()


def test_every_attack_but_the_one_of_large_images_is_tried_here() -> None:
    ours = {name for name in ATTACKS.names() if ATTACKS.get(name).__module__.startswith("tasks.attacks.")}
    assert ours - SMALL.keys() == {"low-frequency", "lagrangian-perceptual"}  # LPIPS wants images of 63 pixels


@pytest.mark.parametrize("name", sorted(SMALL))
def test_rows_of_every_attack_have_the_declared_schema(name: str, attacked: Callable[[AttackConfig], Output]) -> None:
    rows = attacked(_config(name)).rows
    assert rows.schema.equals(ATTACK, check_metadata=True)
    given = {column for column in rows.column_names if rows[column].null_count == 0}
    optional = {column.name for column in ROW_SCHEMAS["attack"].columns if column.nullable}
    assert given & optional == GRADIENTS | OWN.get(name, set())
    assert all(rows[column].null_count == 2 for column in optional - given)


def test_every_column_that_an_attack_gives_is_declared() -> None:
    """From the source: names in ``AttackResult(..., columns={...})`` and in its fourth argument."""
    given = set()
    for path in Path(tasks.attacks.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "AttackResult":
                columns = [*node.args[3:], *(word.value for word in node.keywords if word.arg == "columns")]
                for column in columns:
                    assert isinstance(column, ast.Dict)
                    given |= {key.value for key in column.keys if isinstance(key, ast.Constant)}
    assert given == {"broken", "flow", "lpips", "minimum_l2", "right", "rights", "rung"}
    assert {f"attack_{name}" for name in given} <= set(ATTACK.names)


@pytest.mark.slow
def test_every_other_stage_has_its_declared_schema(
    attack: AttackStage, evaluate: EvaluateStage, context: Context, cnn: ClassifierConfig
) -> None:
    corrupt = CorruptStage(
        dataset=evaluate.dataset, corruption=CorruptionConfig(corruption="contrast", severity=1), seed=0
    )
    smoothed = Smoothed(
        dataset=evaluate.dataset,
        classifier=cnn,
        purifier=NoPurifierConfig(),
        base="bare",
        votes=1,
        sigma=0.25,
        seed=0,
        compute=Compute(batch=50),
    )
    fixed = CertifyStage(smoothed=smoothed, certificate=CertificateConfig(sigma=0.25, n=100, n0=10))
    config = CertificateConfig(sigma=0.25, n=100, n0=10, guarantee="sequential")
    sequential = CertifyStage(smoothed=smoothed, certificate=config)
    fields: dict[str, Any] = {"dataset": evaluate.dataset, "purifier": NoPurifierConfig(), "seed": 0}
    quality = QualityStage(**fields, source=corrupt, classifier=None, quality=QualityConfig(), compute=Compute())
    judged = evaluate.model_copy(update={"source": None, "purifier": NoPurifierConfig()})

    outputs: dict[str, Output] = {}
    kinds: set[str] = set()

    def computed(stage: StageSpec) -> Output:
        if stage.id not in outputs:
            inputs = {}
            for role, source in stage.inputs().items():
                output = computed(source)
                inputs[role] = output.rows if stage.reads == "rows" else output.images
            outputs[stage.id] = stage.run(CHUNK, inputs, context)
            assert outputs[stage.id].rows.schema.equals(ROW_SCHEMAS[stage.stage].arrow, check_metadata=True)
            kinds.add(stage.stage)
        return outputs[stage.id]

    probe = ProbeStage(dataset=judged.dataset, classifier=judged.classifier, compute=judged.compute)
    for stage in (corrupt, quality, judged, fixed, sequential, probe):
        computed(stage)
    assert isinstance(fixed.select, SampleStage)
    assert any(isinstance(source, SequenceStage) for source in sequential.inputs().values())
    assert kinds | {"attack"} == set(ROW_SCHEMAS)


def test_columns_of_an_attack_of_others_are_in_one_column_by_name(
    attacked: Callable[[AttackConfig], Output],
) -> None:
    rows = attacked(TellingConfig(norm="linf", eps=0.1)).rows
    assert rows.schema.equals(ATTACK)
    assert [dict(row) for row in rows["attack_extra"].to_pylist()] == [
        {"score": [0.0], "trace": [0.0, 0.0], "met": [0.0]},
        {"score": [0.25], "trace": [1.0, 10.0], "met": [1.0]},
    ]


def test_they_reach_an_attack_that_is_made_of_its_images(
    attacked: Callable[[AttackConfig], Output], digits: DatasetConfig, cnn: ClassifierConfig, context: Context
) -> None:
    seen: dict[str, list[Any]] = {}

    class Listening(DerivedAttackConfig):
        attack: Literal["listening"] = "listening"

        @property
        def evaluations(self) -> int:
            return 0

        def combine(self, target: Target, x: Tensor, given: Any) -> AttackResult:
            assert isinstance(given[0], Given)
            seen.update({name: values.tolist() for name, values in given[0].columns.items()})
            return AttackResult(given[0].images, torch.zeros(len(x)))

    source = AttackStage(
        dataset=digits, classifier=cnn, attack=TellingConfig(**LINF), seed=0, compute=Compute(batch=2)
    )
    stage = source.model_copy(update={"attack": Listening(**LINF), "sources": (source,)})
    stage.run(CHUNK, {"source 0": _joined(attacked(TellingConfig(**LINF)))}, context)
    assert {name: seen[name] for name in ("score", "trace", "met")} == {
        "score": [0.0, 0.25],
        "trace": [[0.0, 0.0], [1.0, 10.0]],
        "met": [0.0, 1.0],
    }
    # What other attacks say of their images is not there, and not there as nothing.
    assert seen.keys() == {"loss", "score", "trace", "met", "gradients", "gradient_zero", "gradient_nan"}


def test_a_column_of_a_known_name_and_another_type_is_refused(attacked: Callable[[AttackConfig], Output]) -> None:
    with pytest.raises(
        InvalidInput, match=r"column 'rung' holds double; puregrid's own .* holds int64.*another name"
    ):
        attacked(TellingConfig(norm="linf", eps=0.1, clash=True))


@pytest.fixture
def folder(attacked: Callable[[AttackConfig], Output], tmp_path: Path) -> Path:
    """Row files of several attacks as a store has them, the one with the fewest values first."""
    for place, name in enumerate(("pgd", "ladder", "autoattack", "cw-l2")):
        (tmp_path / "attack" / f"{place}").mkdir(parents=True)
        pq.write_table(attacked(_config(name)).rows, tmp_path / "attack" / f"{place}" / "0000003-abc.parquet")
    return tmp_path / "attack"


@pytest.mark.slow
def test_a_folder_of_several_attacks_reads_whole_in_pyarrow_pandas_and_duckdb(folder: Path) -> None:
    import duckdb

    by_pyarrow = ds.dataset(folder).to_table()
    by_pandas = pd.read_parquet(folder)
    by_duckdb = duckdb.read_parquet(f"{folder}/**/*.parquet").to_arrow_table()
    for names in (by_pyarrow.column_names, list(by_pandas.columns), by_duckdb.column_names):
        assert names == ATTACK.names
    assert by_pyarrow.schema.equals(ATTACK)
    counts = {"attack_rung": 2, "attack_rights": 2, "attack_broken": 2, "attack_gradients": 8, "attack_flow": 0}
    for name, count in counts.items():
        for table in (by_pyarrow, by_duckdb):
            assert table.num_rows - table[name].null_count == count
    assert by_pandas["attack_rights"].notna().sum() == 2 and len(by_pandas) == 8
    broken = duckdb.sql(f"SELECT count(*) AS n FROM '{folder}/**/*.parquet' WHERE attack_broken IS NOT NULL").df()
    assert broken["n"].tolist() == [2]


@pytest.mark.slow
def test_old_and_new_files_together_read_whole_with_the_schema(folder: Path) -> None:
    """As of a version whose files had no columns of other attacks; the first file decides what a reader looks for."""
    import duckdb

    first = folder / "0" / "0000003-abc.parquet"
    old = pq.read_table(first).drop_columns(["attack_gradients", "attack_rung", "attack_rights", "attack_extra"])
    pq.write_table(old, first)
    assert "attack_rung" not in ds.dataset(folder).to_table().column_names
    by_pyarrow = ds.dataset(folder, schema=ATTACK).to_table()
    by_pandas = pd.read_parquet(folder, schema=ATTACK)
    by_duckdb = duckdb.read_parquet(f"{folder}/**/*.parquet", union_by_name=True).to_arrow_table()
    assert by_pyarrow.column_names == list(by_pandas.columns) == ATTACK.names
    assert set(by_duckdb.column_names) == set(ATTACK.names)
    for table in (by_pyarrow, by_duckdb):
        assert table.num_rows == 8
        assert table["attack_rung"].null_count == 6 and table["attack_gradients"].null_count == 2
    assert by_pandas["attack_rung"].notna().sum() == 2


class TestComplete:
    def test_missing_columns_are_null_and_the_order_is_the_declared_one(self) -> None:
        schema = ROW_SCHEMAS["corrupt"]
        old = pa.table({"label": pa.array([3], pa.int16()), "image_id": pa.array([7], pa.int32())})
        new = schema.complete(old.replace_schema_metadata({"puregrid.chunk": "c"}))
        assert new.schema.equals(schema.arrow) and new.schema.metadata == {b"puregrid.chunk": b"c"}
        assert new.to_pylist() == [{"image_id": 7, "label": 3, "origin": None, "linf": None, "l2": None}]

    def test_a_table_that_is_whole_stays_the_same_object(self) -> None:
        schema = ROW_SCHEMAS["sample"]
        whole = schema.arrow.empty_table()
        assert schema.complete(whole) is whole

    def test_old_columns_of_an_attack_of_others_move_into_the_one_for_them(self) -> None:
        old = pa.table({"image_id": pa.array([7, 9], pa.int32()), "attack_score": [0.5, 1.5], "attack_hits": [1, 2]})
        new = ROW_SCHEMAS["attack"].complete(old)
        assert new.column_names == ATTACK.names
        assert [dict(row) for row in new["attack_extra"].to_pylist()] == [
            {"hits": [1.0], "score": [0.5]},
            {"hits": [2.0], "score": [1.5]},
        ]

    def test_columns_of_a_newer_version_stay(self) -> None:
        new = ROW_SCHEMAS["sample"].complete(pa.table({"image_id": pa.array([7], pa.int32()), "colour": ["red"]}))
        assert new.column_names == [*ROW_SCHEMAS["sample"].arrow.names, "colour"]
        assert new["colour"].to_pylist() == ["red"]


class TestTable:
    FIELDS: ClassVar[dict[str, pa.Array]] = {
        "image_id": pa.array([7], pa.int32()),
        "label": pa.array([3], pa.int16()),
        "denoiser_evaluations": pa.array([0], pa.int64()),
        "classifier_evaluations": pa.array([1], pa.int64()),
        "counts": pa.array([[1, 0]], pa.list_(pa.int32())),
    }

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"colour": pa.array(["red"])}, "rows of sample have no column colour"),
            ({"label": pa.array([3], pa.int64())}, "column label of sample is int16, not int64"),
            ({"label": pa.array([None], pa.int16())}, "column label of sample lacks values"),
            ({"counts": None}, "column counts of sample lacks values"),
        ],
    )
    def test_what_does_not_fit_is_an_error(self, change: dict[str, Any], message: str) -> None:
        fields = {name: array for name, array in {**self.FIELDS, **change}.items() if array is not None}
        with pytest.raises(ValueError, match=message):
            ROW_SCHEMAS["sample"].table(fields)

    def test_what_fits_is_written_in_the_declared_order(self) -> None:
        table = ROW_SCHEMAS["sample"].table(dict(reversed(self.FIELDS.items())))
        assert table.column_names == list(self.FIELDS)
        np.testing.assert_equal(table["counts"].to_pylist(), [[1, 0]])


def test_the_page_about_the_store_has_the_columns_of_the_code() -> None:
    page = (Path(__file__).parents[2] / "docs" / "store.md").read_text()
    for stage, schema in ROW_SCHEMAS.items():
        _, _, rest = page.partition(f"### Rows of `{stage}`\n")
        lines = [line for line in rest.split("\n###")[0].split("\n## ")[0].splitlines() if line.startswith("| `")]
        assert lines == [
            f"| `{column.name}` | {_type(column.type)} | {column.meaning}{'; may be null' * column.nullable} |"
            for column in schema.columns
        ], f"docs/store.md, Rows of `{stage}`"


def _type(type_: pa.DataType) -> str:
    return str(type_).replace("list<element: ", "list<").replace("list<item: ", "list<")
