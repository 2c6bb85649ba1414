"""The columns of every stage's rows: name, type, meaning, and whether a value may be missing.

All row files of one kind of stage have all of its columns, in this order, so that whatever reads Parquet reads a
folder of them whole; what a unit has no value for is null. Values that only one attack has are columns as well. Those
of attacks that are not puregrid's cannot be known here: they go into one column, ``attack_extra``, by name.

A file of an older version may lack columns; :meth:`RowSchema.complete` adds them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType

import pyarrow as pa

from defense.errors import InvalidInput

__all__ = ["ROW_SCHEMAS", "RowColumn", "RowSchema"]

EXTRA = "attack_extra"
"""The column of the values that only attacks of others have."""

PREFIX = "attack_"
"""Of what the attack itself says of an image."""


@dataclass(frozen=True)
class RowColumn:
    """One column.

    Arguments:
        name: Its name.
        type: Its Arrow type.
        meaning: What its values are, with units.
        nullable: Whether a value may be missing.
    """

    name: str
    type: pa.DataType
    meaning: str
    nullable: bool = False


@dataclass(frozen=True)
class RowSchema:
    """The columns of one kind of stage.

    Arguments:
        stage: The kind.
        version: Raised when columns are added; files say by which they were written.
        columns: In the order of the files.
        optional: Columns that only the files of some specs have, behind the others: those of one stage id are alike.
    """

    stage: str
    version: int
    columns: tuple[RowColumn, ...]
    optional: tuple[RowColumn, ...] = ()

    @cached_property
    def arrow(self) -> pa.Schema:
        """The schema of the files.

        Parquet is not told which columns have no nulls: files of versions that had fewer columns would not fit.
        """
        return pa.schema([(column.name, column.type) for column in self.columns])

    def table(self, columns: Mapping[str, pa.Array]) -> pa.Table:
        """Return rows of all columns, null where none are given, and of those optional ones that are.

        Arguments:
            columns: The others, by name; at least one.

        Raises:
            ValueError: A column is unknown or has another type, or lacks a value that may not be missing.
        """
        extra = tuple(column for column in self.optional if column.name in columns)
        unknown = columns.keys() - set(self.arrow.names) - {column.name for column in extra}
        if unknown:
            raise ValueError(f"rows of {self.stage} have no column {', '.join(sorted(unknown))}")
        count = len(next(iter(columns.values())))
        arrays = []
        for column in (*self.columns, *extra):
            array = columns.get(column.name)
            if array is None:
                array = pa.nulls(count, column.type)
            if array.type != column.type:
                raise ValueError(f"column {column.name} of {self.stage} is {column.type}, not {array.type}")
            if array.null_count and not column.nullable:
                raise ValueError(f"column {column.name} of {self.stage} lacks values")
            arrays.append(array)
        schema = self.arrow
        for column in extra:
            schema = schema.append(pa.field(column.name, column.type))
        return pa.table(arrays, schema=schema)

    def complete(self, table: pa.Table) -> pa.Table:
        """Return rows of any version with the columns of this one: null where the file had none.

        Values that an older version kept in a column of an attack of others move to ``attack_extra``. Columns that
        only a newer version knows stay, behind the others.
        """
        if table.schema.equals(self.arrow):
            return table
        count, names = table.num_rows, set(table.column_names)
        arrays = {
            column.name: table[column.name].cast(column.type)
            if column.name in names
            else pa.chunked_array([pa.nulls(count, column.type)])
            for column in self.columns
        }
        others = {name: table[name] for name in table.column_names if name not in arrays}
        if EXTRA in arrays and EXTRA not in names:
            old = {name: others.pop(name) for name in list(others) if name.startswith(PREFIX)}
            values = {name.removeprefix(PREFIX): column.to_pylist() for name, column in old.items()}
            if values:
                arrays[EXTRA] = pa.chunked_array([extra_column(values, count)])
        return pa.table({**arrays, **others}, metadata=table.schema.metadata)


def extra_column(values: Mapping[str, list[float] | list[list[float]]], count: int) -> pa.Array:
    """Return the column ``attack_extra`` of these values by name; null where there are none."""
    if not values:
        return pa.nulls(count, _EXTRA_TYPE)
    rows = [
        [(name, value if isinstance(value, list) else [value]) for name, value in sorted(_of_row(values, i).items())]
        for i in range(count)
    ]
    return pa.array(rows, _EXTRA_TYPE)


def attack_columns(values: Mapping[str, pa.Array], extra: pa.Array) -> dict[str, pa.Array]:
    """Return what an attack says of its images as columns of the rows.

    Raises:
        InvalidInput: A value has the name of one of puregrid's columns and another type.
    """
    types = {column.name: column.type for column in ROW_SCHEMAS["attack"].columns}
    columns = {EXTRA: extra}
    for name, array in values.items():
        try:
            columns[name] = array.cast(types[name])
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise InvalidInput(
                f"the attack's column {name.removeprefix(PREFIX)!r} holds {array.type}; puregrid's own column of "
                f"that name holds {types[name]}. Give it another name in AttackResult.columns."
            ) from error
    return columns


def _of_row(values: Mapping[str, list[float] | list[list[float]]], row: int) -> dict[str, float | list[float]]:
    return {name: column[row] for name, column in values.items() if column[row] is not None}


_EXTRA_TYPE = pa.map_(pa.string(), pa.list_(pa.float64()))

_IMAGE = (
    RowColumn("image_id", pa.int32(), "position of the image in the data set"),
    RowColumn("label", pa.int16(), "its true class"),
)
_NETWORKS = (
    ("denoiser_evaluations", "evaluations of the purifier's network, for this image"),
    ("classifier_evaluations", "evaluations of classifiers, those inside the purifier included"),
)
_COSTS = tuple(RowColumn(name, pa.int64(), meaning) for name, meaning in _NETWORKS)
_COSTS_32 = tuple(RowColumn(name, pa.int32(), meaning) for name, meaning in _NETWORKS)
_LINF = RowColumn("linf", pa.float64(), "largest change of a pixel, units of [0, 1], measured on the stored image")
_L2 = RowColumn("l2", pa.float64(), "Euclidean norm of the change")

_ATTACK = RowSchema(
    "attack",
    2,
    (
        *_IMAGE,
        RowColumn("clean_prediction", pa.int16(), "answer of the bare classifier to the clean image"),
        RowColumn("adversarial_prediction", pa.int16(), "its answer to the adversarial image"),
        RowColumn(
            "loss",
            pa.float32(),
            "the loss that the attack maximised, of a ladder with ties: spread its score; NaN where it did not look",
        ),
        _LINF,
        _L2,
        RowColumn("l1", pa.float64(), "sum of the changes"),
        *_COSTS,
        RowColumn("attack_gradients", pa.int64(), "gradients that the attack asked for", nullable=True),
        RowColumn("attack_gradient_zero", pa.int64(), "those of them that were zero", nullable=True),
        RowColumn("attack_gradient_nan", pa.int64(), "those of them that were not finite", nullable=True),
        RowColumn(
            "attack_skipped", pa.bool_(), "ladder with skip: an earlier rung has broken the image", nullable=True
        ),
        RowColumn("attack_rung", pa.int64(), "ladder: the rung whose image is submitted, from 0", nullable=True),
        RowColumn("attack_right", pa.float64(), "ladder: its share of right draws", nullable=True),
        RowColumn(
            "attack_rights",
            pa.list_(pa.float64()),
            "ladder: shares of right draws of all rungs, NaN where one skipped the image",
            nullable=True,
        ),
        RowColumn("attack_broken", pa.bool_(), "autoattack: the package's own verdict", nullable=True),
        RowColumn("attack_minimum_l2", pa.float64(), "cw: least l2 norm that broke it, NaN if none", nullable=True),
        RowColumn("attack_flow", pa.float64(), "stadv: largest flow, in pixels", nullable=True),
        RowColumn(
            "attack_lpips",
            pa.float64(),
            "attacks of norm lpips: LPIPS distance of the image",
            nullable=True,
        ),
        RowColumn(
            EXTRA, _EXTRA_TYPE, "attacks that are not puregrid's: their `AttackResult.columns` by name", nullable=True
        ),
    ),
)

_CORRUPT = RowSchema(
    "corrupt",
    1,
    (*_IMAGE, RowColumn("origin", pa.string(), "`official` images of a file, or `generated` ones"), _LINF, _L2),
)

_EVALUATE = RowSchema(
    "evaluate",
    1,
    (
        *_IMAGE,
        RowColumn("prediction", pa.list_(pa.int16()), "the defence's answer, one a draw; -1 for a draw not asked"),
        RowColumn(
            "label_probability",
            pa.list_(pa.float32()),
            "probability of the true class, one a draw; null where not asked",
        ),
        RowColumn(
            "mean_probability",
            pa.list_(pa.float32()),
            "mean over draws of each class's probability; null where not all draws were asked",
        ),
        RowColumn(
            "t_star",
            pa.int32(),
            "the purifier's diffusion time, if it has one; of one that chooses it by the image, its first draw's",
            nullable=True,
        ),
        RowColumn("abar", pa.float64(), "the schedule's value there", nullable=True),
        RowColumn("sigma_eq", pa.float64(), "its noise level in units of [0, 1] pixels", nullable=True),
        *_COSTS_32,
    ),
    optional=(
        RowColumn("draws_asked", pa.int32(), "defences with `until`: how many draws were asked"),
        RowColumn("draw_t_star", pa.list_(pa.int32()), "purifiers with a t* for each image: that of each draw"),
        RowColumn("draw_abar", pa.list_(pa.float64()), "the schedule's values there"),
        RowColumn("draw_sigma_eq", pa.list_(pa.float64()), "their noise levels in units of [0, 1] pixels"),
    ),
)

_MEASURES = (
    ("psnr", "PSNR in dB, infinite for equal images"),
    ("ssim", "SSIM"),
    ("lpips", "LPIPS distance"),
)
_PAIRS = (
    ("input", "the clean image and the one that the defence was given"),
    ("output", "the clean image and the purified one"),
    ("change", "the image that the defence was given and the purified one"),
)

_QUALITY = RowSchema(
    "quality",
    1,
    (
        *_IMAGE,
        *(
            RowColumn(f"{measure}_{pair}", pa.float64(), f"{what} between {images}", nullable=True)
            for pair, images in _PAIRS
            for measure, what in _MEASURES
        ),
        *_COSTS_32,
    ),
)

_COUNTS = RowColumn("counts", pa.list_(pa.int32()), "answers of each class to the samples of this range")
_SO_FAR = RowColumn("counts", pa.list_(pa.int32()), "answers of each class since sample 0")

_SAMPLE = RowSchema("sample", 1, (*_IMAGE, *_COSTS, _COUNTS))

_SEQUENCE = RowSchema(
    "sample-sequence",
    1,
    (*_IMAGE, *_COSTS, _SO_FAR, RowColumn("stopped", pa.bool_(), "whether the image needs no further samples")),
)

_CERTIFY = RowSchema(
    "certify",
    1,
    (
        *_IMAGE,
        *_COSTS,
        RowColumn("prediction", pa.int16(), "certified class, -1 for an abstention"),
        RowColumn("radius", pa.float64(), "certified l2 radius in units of [0, 1] pixels"),
        RowColumn("p_lower", pa.float64(), "lower bound of that class's probability"),
        RowColumn("p_other", pa.float64(), "upper bound of the next class's probability"),
        RowColumn("selection_counts", pa.list_(pa.int32()), "answers of each class to the selection samples"),
        RowColumn("counts", pa.list_(pa.int32()), "answers of each class to the estimation samples"),
        RowColumn("samples", pa.int32(), "estimation samples that were drawn"),
        RowColumn("sigma", pa.float64(), "standard deviation of the noise"),
        RowColumn("alpha", pa.float64(), "the certificate fails with at most this probability"),
        RowColumn("rule", pa.string(), "how the radius follows from the bounds"),
        RowColumn("guarantee", pa.string(), "`fixed-n` or `sequential`"),
    ),
)

_PROBE = RowSchema(
    "probe",
    1,
    (
        RowColumn("kind", pa.string(), "`check`, `gradient` of a mode, or number of the `mechanism`"),
        RowColumn("part", pa.string(), "`purifier` or `classifier`"),
        RowColumn("name", pa.string(), "of the check, the gradient mode or the number"),
        RowColumn(
            "verdict", pa.string(), "`pass`, `fail`, `not-applicable`; of gradients `meant` for that of the function"
        ),
        RowColumn("value", pa.float64(), "measured number; of gradients the median relative error", nullable=True),
        RowColumn("threshold", pa.float64(), "what a check's number is held against", nullable=True),
        RowColumn("text", pa.string(), "what was found, or what the number means"),
        RowColumn("share", pa.float64(), "gradients: share of directions that disagree", nullable=True),
        RowColumn("cosine", pa.float64(), "gradients: with differences at the scale of attacks", nullable=True),
    ),
)

ROW_SCHEMAS: Mapping[str, RowSchema] = MappingProxyType(
    {
        schema.stage: schema
        for schema in (_ATTACK, _CORRUPT, _EVALUATE, _QUALITY, _SAMPLE, _SEQUENCE, _CERTIFY, _PROBE)
    }
)
"""The schema of the rows of each kind of stage."""
