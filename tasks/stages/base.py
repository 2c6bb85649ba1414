"""The base of every stage, the chunk of images that a unit works on, and images as Arrow tables."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from torch import Tensor

from defense.bounds import Bound
from defense.classifiers import ClassifierConfig
from defense.purifiers import PurifierConfig
from defense.spec import Spec, digest
from tasks.attacks import AttackConfig
from tasks.compute import Compute, Context
from tasks.corruptions.config import CorruptionConfig
from tasks.stages.kind import Kind

__all__ = ["Chunk", "Components", "Output", "StageSpec", "images_from_table", "images_to_table"]


@dataclass(frozen=True)
class Chunk:
    """A fixed list of image ids: what one unit of every stage of a sweep works on."""

    ids: tuple[int, ...]

    @cached_property
    def name(self) -> str:
        """File name: the first image id and the hash of them all, so that equal chunks of two sweeps meet."""
        return f"{self.ids[0]:07d}-{digest(','.join(map(str, self.ids)))[:10]}"


@dataclass(frozen=True)
class Output:
    """The result of a unit.

    Arguments:
        rows: One row per image.
        images: Images, if the stage makes any.
        notes: Further notes on the unit: counts, or texts.
        missing: Why a measure could not be taken, by the measure's name.
    """

    rows: pa.Table
    images: pa.Table | None = None
    notes: dict[str, int | float | str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


class Components(NamedTuple):
    """The parts of a stage's own computation; None where it has no such part."""

    classifier: ClassifierConfig | None = None
    purifier: PurifierConfig | None = None
    attack: AttackConfig | None = None
    corruption: CorruptionConfig | None = None


class StageSpec(Spec):
    """A stage of a cell. Subclasses are frozen and define what is computed for one chunk."""

    bounds: ClassVar[Mapping[str, Bound] | None] = None
    stage: str
    version: int

    def inputs(self) -> dict[str, StageSpec]:
        """Stages whose images or rows this one reads, by role: its field ``source``, if it has one."""
        source: StageSpec | None = self.parameter("source")
        return {} if source is None else {"source": source}

    @property
    def reads(self) -> Literal["images", "rows", "images and rows"]:
        """What it reads of its inputs; with ``images and rows`` the other columns of the rows are joined."""
        return "images"

    @property
    def components(self) -> Components:
        """The parts of its computation; by default none that tables and plans know by name."""
        return Components()

    @property
    def threat(self) -> AttackConfig | CorruptionConfig | None:
        """What made, or makes, the images that it is about; None where they are clean."""
        source: StageSpec | None = self.parameter("source")
        return self.components.attack or self.components.corruption or (None if source is None else source.threat)

    @property
    def kind(self) -> Kind:
        """The kind of its units, which have one cost."""
        classifier, purifier, attack, corruption = self.components
        key = self.model_key()
        threat = "" if corruption is None else corruption.corruption
        if attack is not None:
            threat = attack.attack if attack.gradient is None else f"{attack.attack} {attack.gradient}"
        defence = "" if purifier is None else purifier.purifier
        model = classifier.label() if classifier is not None and key == classifier.id else key[:6]
        behind = f"behind {defence}" if threat and defence else defence
        return Kind(self.stage, threat, defence, key, " ".join(filter(None, (self.stage, threat, behind, model))))

    def model_key(self) -> str:
        """Units with equal keys go preferably to the worker that has the models loaded."""
        return ""

    def label(self) -> str:
        """Return its description for plans."""
        return self.stage

    def threat_label(self) -> str:
        """Return the attack column of the cost table."""
        return "clean" if self.threat is None else self.threat.label()

    def settings(self) -> Compute:
        """Return the settings under which the unit computes: its field ``compute``, if it has one."""
        compute: Compute = self.parameter("compute") or Compute()
        return compute

    def work_per_image(self) -> float:
        """Network evaluations that one image costs, for estimates."""
        return 1.0

    @property
    def together(self) -> int:
        """How many elements of one image may go through networks together: draws, or samples."""
        return 1

    @abstractmethod
    def run(self, chunk: Chunk, inputs: Mapping[str, pa.Table], context: Context) -> Output:
        """Compute one unit.

        Arguments:
            chunk: The image ids.
            inputs: Tables of :meth:`inputs` for the same chunk, of what :attr:`reads` says.
            context: The worker's models, data and device.
        """


def images_to_table(ids: tuple[int, ...], images: Tensor) -> pa.Table:
    """Return images as float32 bytes, with their shape in the schema."""
    array = np.ascontiguousarray(images.cpu().numpy(), dtype="<f4")
    width = int(np.prod(array.shape[1:]))
    flat = pa.FixedSizeListArray.from_arrays(pa.array(array.reshape(-1)), width)
    metadata = {"shape": ",".join(map(str, array.shape[1:]))}
    schema = pa.schema([("image_id", pa.int32()), ("image", pa.list_(pa.float32(), width))], metadata=metadata)
    return pa.table([pa.array(ids, pa.int32()), flat], schema=schema)


def images_from_table(table: pa.Table, ids: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Return the images of :func:`images_to_table`, shape (N, C, H, W), checked to be those of ``ids``."""
    if tuple(table["image_id"].to_pylist()) != ids:
        raise ValueError("the stored images are not those of this chunk")
    shape = tuple(map(int, table.schema.metadata[b"shape"].decode().split(",")))
    flat = table["image"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    # A copy: Arrow's own memory is read-only, and torch must not be handed that.
    return np.array(flat, dtype=np.float32).reshape(len(ids), *shape)
