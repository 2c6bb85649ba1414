"""Rules about corruptions: accuracies in the wrong order, origin of the images, incomplete means."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence

from tasks.cifar_c import RELEASES
from tasks.corruptions import BENCHMARK, SEVERITIES
from tasks.corruptions.config import CorruptionConfig
from workflows.audit.about import cells_of
from workflows.audit.excess import exceeds
from workflows.audit.finding import Finding, Severity
from workflows.audit.view import View, group_by

__all__ = ["above_clean", "generated", "incomplete"]

MILD = 2
"""Severities up to this one leave some corruptions almost without effect."""


def _corruption(view: View) -> CorruptionConfig:
    assert view.cell.corruption is not None
    return view.cell.corruption


def _by_dataset(members: Sequence[View]) -> Iterable[list[View]]:
    groups: dict[str, list[View]] = defaultdict(list)
    for view in members:
        groups[view.cell.images.dataset.id].append(view)
    return groups.values()


def _places(members: Sequence[View]) -> set[tuple[str, int]]:
    return {(_corruption(view).corruption, _corruption(view).severity) for view in members}


def above_clean(corrupted: Sequence[View], all_views: Sequence[View]) -> Iterator[Finding]:
    """More accurate on corrupted images than on clean ones.

    The reverse is not guaranteed, so it is no error: a little contrast may help any classifier, and noise may help
    one that was trained with it. But it is rare. p is multiplied by the number of corrupted cells that are compared
    with a clean one, so that chance alone seldom gets here. It is a note where it happens at severities 1 and 2
    alone, at which some corruptions hardly change an image.
    """
    clean = {view.defended: view for view in all_views if view.attack is None}
    pairs = [(view, clean[view.defended]) for view in corrupted if view.defended in clean]
    higher = [(excess, view, base) for view, base in pairs if (excess := exceeds(view, base, len(pairs))) is not None]
    for same in group_by((view for _, view, _ in higher), "defended"):
        severe = any(_corruption(view).severity > MILD for view in same)
        severity: Severity = "warning" if severe else "note"
        largest, view, base = max(
            (item for item in higher if item[1] in same), key=lambda item: item[0].difference.value
        )
        others = f", and {len(same) - 1} more like it" if len(same) > 1 else ""
        yield Finding(
            "corrupted-above-clean",
            severity,
            cells_of([*same, base]),
            f"Accuracy is {100 * largest.higher:.1f} % under {_corruption(view).label()} and "
            f"{100 * largest.lower:.1f} % on the same images without it{others}.",
            {**largest.evidence("corrupted", "clean"), "cells": len(same)},
            "Check that corrupted images and labels belong together, and what the classifier was trained on.",
        )


def generated(corrupted: Sequence[View], _: Sequence[View]) -> Iterator[Finding]:
    """Generated images where there are published ones.

    The published arrays were drawn once, without a seed: generated images follow the same definition and are other
    images, so that a figure on them is not one on CIFAR-10-C. Data sets without published arrays have no other way.
    """
    for members in _by_dataset(corrupted):
        dataset = members[0].cell.images.dataset
        release = RELEASES.get(f"{dataset.dataset}-c") if dataset.split == "test" else None
        own = [view for view in members if _corruption(view).origin == "generated"]
        if release is not None and own:
            yield Finding(
                "generated-corruptions",
                "note",
                cells_of(own),
                f"The images are generated, and not the published arrays of {release.folder}.",
                {"cells": len(own), "images": len(own[0].image_ids)},
                f"Write `origin: official` to compare with published figures on {release.folder}.",
            )


def incomplete(corrupted: Sequence[View], _: Sequence[View]) -> Iterator[Finding]:
    """A mean over fewer than the fifteen corruptions of the benchmark at five severities each.

    Corruptions differ so much that a mean over some of them is not comparable with one over all. The four extra ones
    are no part of it, and cells that are not finished have no part in it.
    """
    complete = [view for view in corrupted if len(view.image_ids) == view.cell.images.count]
    for members in _by_dataset([view for view in complete if _corruption(view).corruption in BENCHMARK]):
        means: dict[tuple[object, ...], list[View]] = defaultdict(list)
        for view in members:
            means[(*view.defended, _corruption(view).origin)].append(view)
        lacking = [same for same in means.values() if len(_places(same)) < len(BENCHMARK) * len(SEVERITIES)]
        if not lacking:
            continue
        fewest = min(map(_places, lacking), key=len)
        severities = Counter(name for name, _ in fewest).values()
        yield Finding(
            "incomplete-benchmark",
            "note",
            cells_of([view for same in lacking for view in same]),
            f"The mean over corruptions is over {len(fewest)} of the benchmark's {len(BENCHMARK) * len(SEVERITIES)} "
            f"pairs of corruption and severity, of {len(severities)} of its {len(BENCHMARK)} corruptions.",
            {"corruptions": len(severities), "severities": min(severities), "cells": len(fewest)},
            "Write `corruption: benchmark` without `severity` for a mean that is to be compared.",
        )
