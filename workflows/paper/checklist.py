"""The items of a conference's checklist that a store can answer, in the words of NeurIPS."""

from collections.abc import Iterator

import pandas as pd

from workflows.analysis import Analysis
from workflows.analysis.provenance import Provenance
from workflows.formats.latex import escaped

__all__ = ["checklist", "hours"]

LICENCES = {
    "digits": "Optical Recognition of Handwritten Digits (UCI), CC BY 4.0, as shipped in scikit-learn (BSD-3-Clause)",
    "cifar10": "CIFAR-10: its authors state no licence; cite the technical report",
    "cifar100": "CIFAR-100: its authors state no licence; cite the technical report",
}
"""Of data sets that puregrid knows."""

_TABLES = {
    "robustness": ("attack", "evaluate"),
    "certified": ("sample", "sample-sequence", "certify"),
    "corruptions": ("corrupt", "evaluate"),
    "quality": ("quality",),
    "probe": ("probe",),
}
"""Stages behind each table."""


def hours(cost: pd.DataFrame) -> dict[str, float]:
    """Return compute hours of one worker behind each table."""
    found: dict[str, float] = {}
    for name, stages in _TABLES.items():
        rows = cost[cost["stage"].isin(stages)] if len(cost) else cost
        if len(rows) and "evaluate" in stages:
            rows = rows[(rows["attack"] == "corruptions") == (name == "corruptions")]
        if len(rows):
            found[name] = float(rows["seconds"].sum()) / 3600
    return found


def checklist(analysis: Analysis, provenance: Provenance, *, archive: str, where: str) -> str:
    """Return the items as LaTeX."""
    items = list(_items(analysis, provenance, archive, where))
    body = "\n".join(f"\\item[{escaped(title)}] {text}" for title, text in items)
    return f"\\begin{{description}}\n{body}\n\\end{{description}}\n"


def _items(analysis: Analysis, provenance: Provenance, archive: str, where: str) -> Iterator[tuple[str, str]]:
    facts = dict(provenance.facts)
    sweep = analysis.sweep
    yield (
        "Experimental result reproducibility.",
        escaped(
            f"Yes. The sweep {sweep.id} is one command, given below; every random number is a function of spec, "
            "seed, image and draw, so that rows are equal on one worker or many. The source is "
            f"{facts.get('source', 'not recorded')}."
        ),
    )
    yield (
        "Open access to data and code.",
        escaped(
            f"puregrid is under Apache-2.0. The adversarial images are in the folder {where}; "
            f"`puregrid judge {where}` judges them again. The sha256 of its manifest is {archive[:32]} "
            f"{archive[32:]}."
        ),
    )
    yield (
        "Experimental setting and details.",
        "Yes: every field that decides a row is in the section on methods.",
    )
    yield "Statistical significance.", _bars(analysis)
    yield "Compute resources.", _compute(analysis, facts)
    yield "Licences of existing assets.", escaped(_licences(analysis))


def _bars(analysis: Analysis) -> str:
    if analysis.sweep.precision is not None:
        return (
            "Yes. Error bars are confidence sequences at 95\\,\\% by betting, which hold at any number of images. "
            "The variability is that of images; draws are averaged within an image."
        )
    return (
        "Yes. Error bars are two-sided 95\\,\\% Wilson intervals,\n"
        "\\[\\left(\\hat p + \\frac{z^2}{2n} \\pm z\\sqrt{\\frac{\\hat p(1-\\hat p)}{n} + \\frac{z^2}{4n^2}}\\right) "
        "/ \\left(1 + \\frac{z^2}{n}\\right)\\]\n"
        "with $\\hat p$ the share of right answers, $z = 1.96$ and $n$ images. The variability is that of the choice "
        "of images; draws of the defence are averaged within an image first. Networks are fixed: variation between "
        "trainings is not in them. "
        f"Seeds: {', '.join(map(str, sorted({cell.seed for cell in analysis.sweep.cells})))}."
    )


def _compute(analysis: Analysis, facts: dict[str, str]) -> str:
    device = facts.get("device", "no GPU")
    parts = [f"{name} {value:.3g} h" for name, value in hours(analysis.cost).items()]
    total = float(analysis.cost["seconds"].sum()) / 3600 if len(analysis.cost) else 0.0
    machine = f"GPU: {device}; processor: {facts.get('cpu', 'not recorded')}"
    machine += f"; driver: {facts['driver']}" if "driver" in facts else ""
    text = (
        f"{machine}. Compute of one worker, without loading and idle time: {', '.join(parts) or 'none'}; all stages "
        f"of the sweep {total:.3g} h. Experiments that are not in this store are not counted."
    )
    return escaped(text)


def _licences(analysis: Analysis) -> str:
    datasets = {cell.images.dataset.dataset for cell in analysis.sweep.cells}
    stated = [LICENCES.get(name, f"{name}: to be stated by the authors") for name in sorted(datasets)]
    return (
        "; ".join(stated)
        + ". Weights that ship with puregrid are under Apache-2.0; of all others the store knows the sha256, which "
        "stands in the section on methods, and the licence is to be stated by the authors."
    )
