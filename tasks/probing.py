"""Probe a defence from Python: anybody's purifier or classifier, on images of a data set."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from defense.classifiers import Architecture, ClassifierConfig
from defense.defended import Defended
from defense.errors import InvalidInput, no_memory
from defense.models import Models
from defense.probe import IMAGES, Probe, probe_classifier, probe_purifier
from defense.purifiers.base import Purifier, PurifierConfig
from defense.registry import Registry
from defense.spec import Reading
from tasks.datasets import DatasetConfig

__all__ = ["imported", "probe"]


def probe(
    defence: Any,
    classifier: Any = None,
    *,
    dataset: DatasetConfig | Mapping[str, Any] | str | None = None,
    images: Tensor | None = None,
    reference: Tensor | None = None,
) -> Probe:
    """Ask a defence whether it is a function with the gradient that it gives, and does what it says.

    >>> found = puregrid.probe(MyPurifierConfig(), "digits-cnn", dataset="digits")   # doctest: +SKIP
    >>> print(found)                                                                 # doctest: +SKIP
    >>> assert found.passed                                                          # doctest: +SKIP

    Arguments:
        defence: A purifier or its config, a classifier or its config, architecture or name, a mapping as in a sweep
            file, or a :class:`~defense.Defended` of both. A config says more of itself than a module does.
        classifier: The classifier behind a purifier, probed too; a purifier that it guides needs it.
        dataset: Data set of the images; by default the digits, if no images are given.
        images: Images in [0, 1], shape (N, C, H, W), at least two; by default the first of the data set.
        reference: The test set, to look for among outputs; by default all images of the data set.

    Returns:
        The checks, gradients by mode, and numbers of the mechanism, of all parts together.

    Raises:
        InvalidInput: Something that is no defence, a data set without images for it, a file that is missing.
    """
    images, reference = _images(dataset, images, reference)
    if isinstance(defence, Mapping):
        defence = _of_entry(defence)
    if isinstance(defence, Defended):
        defence, classifier = defence.purifier, defence.classifier if classifier is None else classifier
    config, network = _classifier(classifier) if classifier is not None else (None, None)
    probes = []
    if isinstance(defence, type) and issubclass(defence, PurifierConfig | Purifier | nn.Module):
        defence = _made(defence)
    if isinstance(defence, PurifierConfig):
        defence.check_images(tuple(images.shape[1:]))  # type: ignore[arg-type]
        if defence.uses_classifier and network is None:
            raise InvalidInput(
                f"purifier {defence.label()!r} is guided by the classifier that it protects: name one.",
                where="classifier",
            )
        models = Models(network)
        built = _built(defence, models)
        probes.append(probe_purifier(built, images, config=defence, models=models, reference=reference))
    elif isinstance(defence, Purifier):
        probes.append(probe_purifier(defence, images, reference=reference))
    elif classifier is not None:
        raise InvalidInput(f"{defence!r} is no purifier, so that no classifier can be behind it.", where="defence")
    else:
        config, network = _classifier(defence)
    if network is not None:
        wanted = None if config is None else config.architecture.image_shape
        if wanted not in (None, tuple(images.shape[1:])):
            raise InvalidInput(
                f"the classifier takes images of shape {wanted}, not {tuple(images.shape[1:])}: name a data set that "
                "has such images.",
                where="dataset",
            )
        probes.append(probe_classifier(network, images, config=config))
    return Probe.together(" + ".join(found.label for found in probes), probes)


def _built(config: PurifierConfig, models: Models) -> Purifier:
    try:
        return config.build(models)
    except Exception as error:  # code from elsewhere raises whatever it raises
        if isinstance(error, InvalidInput) or no_memory(error):
            raise
        raise InvalidInput(
            f"purifier {config.label()!r} cannot be built: {type(error).__name__}: {error}", where="defence"
        ) from error


def _made(kind: type[Any]) -> Any:
    try:
        return kind()
    except Exception as error:
        raise InvalidInput(
            f"{kind.__name__} cannot be made without arguments: {error}. Give an object of it.", where="defence"
        ) from error


def _classifier(given: Any) -> tuple[ClassifierConfig | None, nn.Module]:
    """Return config and network of a classifier, in whatever way it is given."""
    if isinstance(given, Mapping):
        given = _of_entry(given)
    if isinstance(given, type) and issubclass(given, nn.Module):
        given = _made(given)
    if isinstance(given, nn.Module):
        return None, given
    if isinstance(given, Architecture):
        return None, _of_architecture(given)
    if isinstance(given, str):
        given = ClassifierConfig(classifier=given)
    if not isinstance(given, ClassifierConfig):
        raise InvalidInput(
            f"{given!r} is no purifier and no classifier: give a config, a torch module, or a classifier's name.",
            where="defence",
        )
    resolved = given.resolved(Path())
    return resolved, resolved.build()


def _of_architecture(architecture: Architecture) -> nn.Module:
    if architecture.weights is None:
        raise InvalidInput(
            "this architecture has no weights: give a ClassifierConfig with `weights`.", where="defence"
        )
    from defense.classifiers import Normalised

    net = architecture.loaded(architecture.weights)
    return Normalised(net, architecture.mean, architecture.std).eval().requires_grad_(False)


def _images(
    dataset: DatasetConfig | Mapping[str, Any] | str | None, images: Tensor | None, reference: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    if images is not None and dataset is None:
        return images, reference
    if not isinstance(dataset, DatasetConfig):
        dataset = DatasetConfig.from_entry(dataset or "digits", Reading(Path())).resolved(Path())
    known = torch.from_numpy(dataset.load().images)
    return known[:IMAGES] if images is None else images, known if reference is None else reference


_DEFENCES: Registry[Any] = Registry("defence", "puregrid.defences")


def imported(text: str) -> Any:
    """Return what ``module:Attribute`` names.

    Raises:
        InvalidInput: It cannot be imported, or may not be.
    """
    return _DEFENCES.get(text)


def _of_entry(entry: Mapping[str, Any]) -> PurifierConfig | ClassifierConfig:
    """Return the config of an entry of a sweep file."""
    if ("purifier" in entry) == ("classifier" in entry):
        raise InvalidInput(f"{entry!r} names no purifier and no classifier by these keys.", where="defence")
    if "purifier" in entry:
        return PurifierConfig.from_entry(entry, Reading(Path())).resolved(Path())
    return ClassifierConfig.from_entry(entry, Reading(Path())).resolved(Path())
