"""Networks of RobustBench by name: ``robustbench:NAME?dataset=cifar10&threat=Linf``.

Croce et al., "RobustBench: a standardized adversarial robustness benchmark", arXiv 2010.09670; the package of that
name has architecture, normalisation and the way that each checkpoint is read. The checkpoint is a file that the user
has: the package would download it, puregrid does not let it. An extra: ``pip install puregrid[robustbench]``.
"""

import importlib
import sys
import tempfile
import warnings
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import nn

from defense.classifiers.base import CLASSIFIERS, NOT_NORMALISED, Architecture
from defense.classifiers.zoos import options
from defense.errors import InvalidInput, nearest
from defense.torchvision_cpu import allow_torchvision_import
from defense.weight_files import plain_types, read_sets

__all__: list[str] = []

_DATASETS = {"cifar10": ((3, 32, 32), 10), "cifar100": ((3, 32, 32), 100), "imagenet": ((3, 224, 224), 1000)}
_EXAMPLE = "robustbench:Carmon2019Unlabeled?dataset=cifar10&threat=Linf"


@CLASSIFIERS.family("robustbench")
def _robustbench(rest: str) -> Architecture:
    name, stated = options(rest, ("dataset", "threat"), example=_EXAMPLE)
    zoo = _package(rest)
    dataset, threat = stated.get("dataset", "cifar10"), stated.get("threat", "Linf")
    tables = {data.value: {kind.value: nets for kind, nets in kinds.items()} for data, kinds in zoo.items()}
    for key, value, known in (("dataset", dataset, tables), ("threat", threat, tables.get(dataset, {}))):
        if value not in known:
            raise InvalidInput(f"RobustBench has no {key} {value!r}; {nearest(value, known)}")
    networks = tables[dataset][threat]
    if name not in networks:
        raise InvalidInput(f"RobustBench has no network {name!r} for {dataset}, {threat}; {nearest(name, networks)}")
    drive = networks[name].get("gdrive_id")
    if not isinstance(drive, str) or (dataset == "imagenet" and "Standard" in name):
        raise InvalidInput(
            f"the weights of RobustBench's {name} for {dataset}, {threat}, are not one file of its own"
            + (f" but {len(drive)}" if isinstance(drive, list) else "")
            + ": it cannot be named here. Undefended networks of ImageNet are torchvision's: torchvision:resnet50."
        )
    shape, classes = _DATASETS[dataset]
    mean, std = NOT_NORMALISED
    return Architecture(
        build=networks[name]["model"],
        image_shape=shape,
        classes=classes,
        mean=mean,
        std=std,
        load=partial(_loaded, name, dataset, threat),
        source=f"RobustBench keeps it at https://drive.google.com/uc?id={drive}; puregrid never fetches it.",
    )


def _package(rest: str) -> Any:
    """Return the table of networks of the package: data set and threat model to name to network."""
    allow_torchvision_import()
    # The package imports AutoAttack at its top, which the package index has under another name only.
    alias = find_spec("autoattack") is None and find_spec("pyautoattack") is not None
    if alias:
        sys.modules["autoattack"] = importlib.import_module("pyautoattack")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it registers networks that timm has by now
            return importlib.import_module("robustbench.model_zoo").model_dicts
    except ImportError as error:
        raise InvalidInput(
            f"classifier 'robustbench:{rest}' needs the package robustbench, which cannot be imported ({error}): "
            "pip install 'puregrid[robustbench]'"
        ) from error
    finally:
        if alias:
            del sys.modules["autoattack"]


def _loaded(name: str, dataset: str, threat: str, path: str | Path) -> nn.Module:
    """Return the network as the package reads it from a file at the place where it would download it to."""
    path = Path(path).resolve()
    read_sets(path)  # refuses what is no checkpoint, or holds code
    load: Any = importlib.import_module("robustbench.utils").load_model
    with tempfile.TemporaryDirectory(prefix="puregrid-") as folder:
        place = Path(folder) / dataset / threat / f"{name}.pt"
        place.parent.mkdir(parents=True)
        place.symlink_to(path)
        try:
            with plain_types():
                net: nn.Module = load(name, folder, dataset, threat)
        except Exception as error:
            detail = str(error).strip().partition("\n")[0]
            raise InvalidInput(
                f"weights {str(path)!r} are not those of RobustBench's {name} for {dataset}, {threat}: {detail}"
            ) from error
    return net.eval().requires_grad_(False)
