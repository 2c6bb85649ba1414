"""Check that the parts of a cell fit together, before anything is computed."""

from collections.abc import Iterable
from functools import partial

from defense.purifiers import NoPurifierConfig
from tasks.attacks import AttackConfig, StrongestConfig
from tasks.stages import Chunk
from workflows.documents.document import Document
from workflows.documents.entries import located
from workflows.grid.cells import Cell
from workflows.grid.precision import Precision

__all__ = ["check_fit", "check_one_choice_of_images"]


def check_one_choice_of_images(document: Document, cells: Iterable[Cell]) -> None:
    """Refuse a data set with other chunks in some cells: cells are paired, and no unit is planned twice.

    Raises:
        InvalidInput: It is listed with two choices.
    """
    chunks: dict[str, tuple[Chunk, ...]] = {}
    for cell in cells:
        images = cell.images
        if chunks.setdefault(images.dataset.id, images.chunks) != images.chunks:
            raise document.error(
                ("datasets",),
                f"data set {images.dataset.label()!r} is listed with two choices of images: cells on different "
                "images cannot be compared. Give one entry with all of them, or write two sweep files, which "
                "share what they have in common.",
            )


def check_fit(document: Document, cell: Cell, precision: Precision | None = None) -> None:
    """Refuse a cell whose parts take other images, whose attack cannot meet its defence, or with too few draws.

    Raises:
        InvalidInput: They do not; at the entry of the sweep file that has to change.
    """
    defence = cell.defence
    judged = cell.certificate is None and defence.purifier.stochastic
    if judged and cell.resubmissions is not None and cell.resubmissions > defence.draws:
        raise document.error(
            ("resubmissions",),
            f"worst-of-{cell.resubmissions} accuracy needs as many draws, {defence.label()!r} has "
            f"{defence.draws}. Raise its `draws`, or lower `resubmissions`.",
        )
    _check_until(document, cell, precision)
    if cell.compute.compile and defence.purifier.guided:
        raise document.error(
            ("compute", "compile"),
            f"purifier {defence.label()!r} is guided: that takes the derivative of a derivative, which compiled "
            "networks do not have. Set compile: false, or `exclude` the purifier.",
        )
    if cell.attack is not None:
        _check_certain(document, cell, cell.attack)
        _check_warm(document, cell, cell.attack)
        if not cell.attack.static:
            located(document, cell.entries.threat, partial(cell.attack.check, cell.defence.purifier))
    shape = cell.images.dataset.image_shape
    hint = "Correct the entry, or `exclude` the combination."
    for keys, noun, name, wanted in (
        (cell.entries.classifier, "classifier", cell.classifier.label(), cell.classifier.architecture.image_shape),
        (cell.entries.defence, "purifier", cell.defence.label(), cell.defence.purifier.image_shape),
    ):
        if wanted is not None and wanted != shape:
            raise document.error(
                keys,
                f"{noun} {name!r} takes images of shape {wanted}, data set {cell.images.dataset.label()!r} has "
                f"{shape}. {hint}",
            )
    _check_classes(document, cell)
    located(document, cell.entries.defence, partial(cell.defence.purifier.check_images, shape))
    if cell.attack is not None:
        located(document, cell.entries.threat, partial(cell.attack.check_budget, shape))
        classes = cell.classifier.architecture.classes
        located(document, cell.entries.threat, partial(cell.attack.check_task, classes, shape))
    if cell.corruption is not None:
        located(document, cell.entries.threat, partial(cell.corruption.check_images, shape))


def _check_until(document: Document, cell: Cell, precision: Precision | None) -> None:
    """Refuse draws that stop where the sweep asks for more than what is then certain."""
    until, draws = cell.defence.until, cell.defence.draws
    if until is None:
        return
    aggregation, measure = {"vote": ("majority-vote", "answer"), "worst": ("single", "worst")}[until]
    keys = (*cell.entries.defence, "until")
    if draws == 1:
        raise document.error(keys, "of one draw none can be left out: raise `draws`, or remove `until`.")
    if cell.defence.aggregation != aggregation:
        raise document.error(
            keys,
            f"`until: {until}` goes with `aggregation: {aggregation}`: an answer by {cell.defence.aggregation} needs "
            "other draws than it asks. Change one of them.",
        )
    if until == "worst" and cell.resubmissions not in (None, draws):
        raise document.error(
            keys,
            f"`until: worst` finds whether all {draws} draws are right, and `resubmissions` asks for worst of "
            f"{cell.resubmissions}: remove `resubmissions`, or give `draws: {cell.resubmissions}`.",
        )
    if precision is not None and precision.measure != measure:
        raise document.error(
            keys,
            f"`until: {until}` leaves open what `precision` asks for ({precision.measure}): write "
            f"`measure: {measure}` there, or remove `until`.",
        )
    for threat, needed in (
        (cell.corruption, "a table of corruptions is a mean over all draws"),
        (cell.converge, "`converge` goes by the mean over all draws"),
    ):
        if threat is not None:
            raise document.error(
                cell.entries.threat,
                f"{needed}, and {cell.defence.label()!r} has `until: {until}`. Remove that, or `exclude` the "
                "combination.",
            )


def _check_classes(document: Document, cell: Cell) -> None:
    """Refuse a data set and a classifier that number their classes differently."""
    dataset, classifier = cell.images.dataset, cell.classifier
    names, known = dataset.class_names, classifier.architecture.class_names
    hint = "Correct the entry, or `exclude` the combination."
    if len(names) != classifier.architecture.classes:
        raise document.error(
            cell.entries.classifier,
            f"classifier {classifier.label()!r} has {classifier.architecture.classes} classes, data set "
            f"{dataset.label()!r} has {len(names)} ({', '.join(names[:4])}{', ...' * (len(names) > 4)}). {hint}",
        )
    if not known or known == names:
        return
    place = next(i for i, (name, known_name) in enumerate(zip(names, known, strict=True)) if name != known_name)
    order = " The names are the same in another order." if sorted(known) == sorted(names) else ""
    raise document.error(
        cell.entries.classifier,
        f"class {place} is {names[place]!r} in data set {dataset.label()!r} and {known[place]!r} for classifier "
        f"{classifier.label()!r}.{order} {hint}",
    )


def _check_certain(document: Document, cell: Cell, attack: AttackConfig) -> None:
    """Refuse an attack that stops on success where it does not see the very answers that are judged."""
    inside = [part for _, part in attack.parts() if isinstance(part, AttackConfig)]
    if not any(config.stops for config in (attack, *inside)):
        return
    purifier = cell.defence.purifier
    bare = isinstance(purifier, NoPurifierConfig)
    if not bare and (purifier.stochastic or any(config.static for config in (attack, *inside) if config.stops)):
        why = (
            "answers are random and one wrong one is luck"
            if purifier.stochastic
            else "the attack does not see it, and images that just fool the bare classifier are easily purified"
        )
        raise document.error(
            cell.entries.threat,
            f"{attack.label()} stops on success, which would overrate {purifier.label()!r}: {why}. Remove "
            "`stop_on_success`, or `exclude` the combination.",
        )


def _check_warm(document: Document, cell: Cell, attack: AttackConfig) -> None:
    """Refuse an attack that starts from the images of rungs before it, where there are none."""
    if isinstance(attack, StrongestConfig):
        return
    for config in (attack, *(part for _, part in attack.parts())):
        if isinstance(config, AttackConfig) and config.parameter("warm"):
            raise document.error(
                cell.entries.threat,
                f"{config.label()} starts from the worst image of the rungs before it, and is alone. Remove `warm`, "
                "or make it a rung of `attack: strongest`.",
            )
