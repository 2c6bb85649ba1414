"""What a sweep with ``precision: {decide: ...}`` has decided."""

import pandas as pd

from workflows.grid.precision import MARGIN
from workflows.results.reader import Results
from workflows.statistics.sequences import anytime, anytime_difference

__all__ = ["decision_frame"]


def decision_frame(results: Results) -> pd.DataFrame:
    """Return one row per question that a sweep asks; empty if it asks none.

    Columns: ``dataset``, ``classifier``, ``threat``, ``eps``, ``seed``; ``question``; ``value`` in [0, 1], the
    accuracy, the drop since a baseline, or the difference second minus first, with ``value_low`` and ``value_high``;
    ``images`` of ``planned``; ``answer``: ``above`` or ``below``, ``holds`` or ``fell``, the better defence, ``no
    answer`` where all images are judged, or ``not yet``; ``cells``.
    """
    precision, stopping = results.sweep.precision, results.stopping
    if precision is None or precision.decide is None or stopping is None:
        return pd.DataFrame()
    stopping.look()
    lines = []
    for number, question in enumerate(results.sweep.questions):
        cells = [results.sweep.cells[position] for position in question.cells]
        labels = [results.sweep.labels[cell.id] for cell in cells]
        names = [label["defence"] for label in labels]
        values, population = stopping.used(number), stopping.population(question)
        line: dict[str, object] = {
            **{part: labels[-1][part] for part in ("dataset", "classifier")},
            "threat": labels[-1]["attack"],
            "eps": 0.0 if cells[-1].attack is None else cells[-1].attack.eps,
            "seed": cells[-1].seed,
            "images": len(values[0]),
            "planned": cells[0].images.count,
            "guarantee": precision.guarantee,
            "cells": [cell.id for cell in cells],
        }
        if precision.decide.threshold is not None:
            limit = precision.decide.threshold / 100
            line |= {"question": f"{names[0]}: above {100 * limit:g} %?", **_empty()}
            if len(values[0]):
                mean = anytime(values[0], population)
                line |= {"value": mean.value, "value_low": mean.low, "value_high": mean.high}
                line["answer"] = "above" if mean.low > limit else "below" if mean.high < limit else ""
        elif precision.decide.drop is not None:
            most = precision.decide.drop / 100
            line |= {"question": f"{names[0]}: fallen by less than {100 * most:g} points?", **_empty()}
            if len(values[0]):
                d = anytime_difference(values[0], values[1])
                line |= {"value": d.value, "value_low": d.low, "value_high": d.high}
                line["answer"] = "holds" if d.high < most else "fell" if d.low > MARGIN else ""
        else:
            line |= {"question": f"{names[0]} or {names[1]}?", **_empty()}
            if len(values[0]):
                d = anytime_difference(values[0], values[1], population)
                line |= {"value": d.value, "value_low": d.low, "value_high": d.high}
                line["answer"] = names[1] if d.low > 0 else names[0] if d.high < 0 else ""
        line["answer"] = line["answer"] or ("no answer" if line["images"] == line["planned"] else "not yet")
        lines.append(line)
    return pd.DataFrame(lines)


def _empty() -> dict[str, object]:
    return {"value": None, "value_low": None, "value_high": None, "answer": ""}
