"""Training configs: typed, validated, one YAML file each."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from defense.bounds import Bound
from defense.spec import EntryOf, Spec
from tasks.datasets import DatasetConfig

__all__ = ["Training"]


class Training(Spec):
    """The fields of every training.

    Arguments:
        train: The kind, ``classifier``, ``denoiser`` or ``energy``.
        out: Folder for the weights and their card; relative paths start at the working directory.
        dataset: A data set entry as in a sweep file; its train split is used.
        batch: Images per step.
        steps: Optimiser steps.
        lr: Peak learning rate: linear warm-up over the first 5 %, then a cosine to zero.
        weight_decay: Weight decay of the optimiser.
        seed: Decides initialisation, order, augmentation and noise.
        threads: torch threads. Part of the config, since another number changes the last bits.
        shift: Augmentation: random shift by up to this many pixels, empty pixels zero.
        flip: Augmentation: random horizontal flip.
        ema: Decay of the averaged weights that are saved, 0 for none.
        precision: ``bf16`` runs the network under autocast.
        checkpoint_every: Steps between two checkpoints; by default one every five minutes.
        log_every: Steps between two points of the loss curve in MLflow; by default a hundredth of all steps.
        evaluate_every: Steps between two points of the test curves there; by default a tenth of all steps.
        device: ``cpu``, ``cuda`` or ``auto``: CUDA if there is any. Random numbers are the same on both, roundings
            are not: the card says which was used, and a checkpoint continues on the device that it was made on.
    """

    bounds: ClassVar[Mapping[str, Bound]] = {
        "steps": Bound(100_000_000, "more than any training could take"),
        "eps": Bound(1, "the distance from black to white"),
    }
    train: str
    out: str
    dataset: Annotated[dict[str, Any], EntryOf(DatasetConfig)]
    batch: int = Field(ge=1)
    steps: int = Field(ge=1)
    lr: float = Field(gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    seed: int = 0
    threads: int = Field(default=1, ge=1)
    shift: int = Field(default=0, ge=0)
    flip: bool = False
    ema: float = Field(default=0.0, ge=0, lt=1)
    precision: Literal["fp32", "bf16"] = "fp32"
    checkpoint_every: int | None = Field(default=None, ge=1, exclude=True)
    log_every: int | None = Field(default=None, ge=1, exclude=True)
    evaluate_every: int | None = Field(default=None, ge=1, exclude=True)
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", exclude=True)

    def data_config(self, split: Literal["train", "test"]) -> DatasetConfig:
        """Return the data set of one split, with its digest.

        Raises:
            InvalidInput: It is not where it should be.
        """
        return DatasetConfig.from_entry({**self.dataset, "split": split}).resolved(Path.cwd())
