"""Match published accuracies with those that a sweep measured, and list the settings that differ."""

import re
from collections.abc import Collection, Iterable, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from defense.aggregate import aggregate
from defense.purifiers import PurifierConfig
from tasks.attacks.budgets import format_eps
from tasks.corruptions import SEVERITIES
from workflows.documents.authors import authors_settings
from workflows.grid.cells import Cell
from workflows.published.papers import Paper, Published, load_paper, papers
from workflows.results.reader import Results

__all__ = ["comparable", "differences", "match_published", "same_method"]


_COLUMNS = [
    *("paper", "table", "dataset", "classifier", "defence", "threat", "published", "certainty"),
    *("measured", "low", "high", "difference", "images", "dataset_measured", "classifier_measured"),
    *("defence_measured", "threat_measured", "seed", "cell", "differs", "anomalies", "source"),
]


def match_published(
    results: Results, names: Iterable[str] | None = None, *, loosely: bool = False, unmeasured: bool = False
) -> pd.DataFrame:
    """Put published and measured accuracies side by side, both in %.

    A cell of the sweep and a published value belong together if they agree in data set, classifier (by
    architecture), defence, and threat: norm, budget and, where the paper states them, attack and whether it sees the
    purifier. A value whose classifier is not stated goes with every classifier. Under a corruption, measured is the
    mean over those of its severities that the sweep has complete. A baseline of the paper (AT, TRADES, ...) is a cell
    without purifier whose classifier is called so, by ``name: trades`` or ``name: trades resnet18``.

    Arguments:
        results: The committed results of a sweep.
        names: Papers; by default all.
        loosely: Whether a value also goes with cells of other data, classifiers, budgets and attacks, which
            ``differs`` then begins with: to see a smoke sweep's table whole, never to compare.
        unmeasured: Whether published values without a cell have a line too.

    Returns:
        A line for each pair: ``published`` with its ``certainty`` and ``source``; ``measured`` (mean over draws) with
        its 95 % Wilson interval over ``images``; ``difference``, measured minus published; ``differs``, the settings
        of the two where they are not the same or not stated; ``anomalies`` of the table. ``classifier`` and
        ``dataset`` are the paper's, the classifier "" where it is not stated.
    """
    lines = []
    called = results.sweep.names
    groups = [(cells, called.get(cells[0].defence.purifier.id, ())) for cells in _groups(results)]
    for name in papers() if names is None else names:
        paper = load_paper(name)
        for value in paper.values:
            head = _published(paper, value)
            pairs = [cells for cells, named in groups if _same(value, cells[0], named, loosely)]
            lines += [{**head, **_measured(value, cells, results)} for cells in pairs]
            if not pairs and unmeasured:
                lines.append(head)
    return pd.DataFrame(lines, columns=_COLUMNS)


def _groups(results: Results) -> list[list[Cell]]:
    """Group the complete cells; cells that differ only in the severity of a corruption are together."""
    groups: dict[tuple[object, ...], list[Cell]] = {}
    for cell in results.sweep.cells:
        # A paper's figure is of all draws, or of their answer.
        if cell.certificate is not None or cell.defence.until == "worst" or not results.complete(cell):
            continue
        if cell.corruption is None:
            groups[(cell.id,)] = [cell]
            continue
        stage = cell.evaluate
        key = (stage.dataset.id, stage.classifier.id, stage.purifier.id, stage.draws, cell.seed)
        chunks = tuple(chunk.name for chunk in cell.images.chunks)
        groups.setdefault((*key, chunks, cell.corruption.corruption, cell.corruption.origin), []).append(cell)
    return list(groups.values())


def _architecture(name: str) -> str:
    """Return one name for ``torchvision:mobilenet_v2?classes=30`` and ``mobilenetv2``, and so on."""
    plain = re.sub(r"[^a-z0-9]", "", re.sub(r"^[a-z]+:|\?.*$|-b$|_x1_0|_100\b", "", name.lower()))
    return {"standard": "wrn2810", "wideresnet2810": "wrn2810"}.get(plain, plain)


def _same_data(value: Published, cell: Cell) -> bool:
    return value.dataset in (cell.images.dataset.dataset, cell.images.dataset.label())


def _same_classifier(value: Published, cell: Cell) -> bool:
    return value.classifier is None or _architecture(value.classifier) == _architecture(cell.classifier.classifier)


def _same_budget(value: Published, cell: Cell) -> bool:
    return cell.attack is None or abs(cell.attack.eps - (value.column.eps or 0)) <= 1e-3


def _same_attack(value: Published, cell: Cell) -> bool:
    return cell.attack is None or value.column.attack in (None, cell.attack.attack)


def same_method(value: Published, purifier: PurifierConfig, named: Collection[str] = ()) -> bool:
    """Return whether a published value is one of this purifier, by its name.

    A form of a purifier may have a value of its own: its name begins the label, as in "score-opt N".

    Arguments:
        value: The value.
        purifier: The purifier.
        named: Published settings that a sweep says it is. Two methods may have one purifier: ADBM is DiffPure in what
            it does, with a network of its own, and no claim about DiffPure is one about ADBM.
    """
    if named and value.defence in authors_settings():
        return value.defence in named
    return value.defence == purifier.purifier or purifier.label().startswith(f"{value.defence} ")


def comparable(value: Published, cell: Cell) -> bool:
    """Return whether a value is of the data, the norm and the budget of a cell, whatever its classifier."""
    norm = None if cell.attack is None else cell.attack.norm
    return _same_data(value, cell) and norm == value.column.norm and _same_budget(value, cell)


def _same(value: Published, cell: Cell, named: Collection[str], loosely: bool) -> bool:
    column = value.column
    exact = (_same_data, _same_classifier, _same_budget, _same_attack)
    if not loosely and not all(same(value, cell) for same in exact):
        return False
    if not same_method(value, cell.defence.purifier, named):
        named = {value.defence, f"{value.defence} {value.classifier}"}
        label = cell.classifier.label().lower()
        # The embedded baselines are digits-at, digits-trades and so on.
        if cell.defence.purifier.purifier != "none" or not {label, label.removeprefix("digits-")} & named:
            return False
    if column.threat == "corruption":
        return cell.corruption is not None and cell.corruption.corruption == column.corruption
    if column.threat == "clean":
        return cell.threat is None
    attack = cell.attack
    if attack is None or attack.norm != column.norm:
        return False
    return column.adaptive is None or column.adaptive != attack.static


def _published(paper: Paper, value: Published) -> dict[str, object]:
    return {
        "paper": paper.paper,
        "table": value.table,
        "dataset": value.dataset,
        "classifier": value.classifier or "",
        "defence": value.defence,
        "threat": value.column.label(),
        "published": value.accuracy,
        "certainty": value.certainty,
        "differs": "",
        "anomalies": " ".join(anomaly.text for anomaly in paper.anomalies if value.table in anomaly.tables),
        "source": value.source,
    }


def _measured(value: Published, cells: list[Cell], results: Results) -> dict[str, object]:
    cell = cells[0]
    measured = results.estimate(cell, np.mean([_average(results, severity) for severity in cells], axis=0))
    labels = results.sweep.labels[cell.id]
    severities = sorted({other.corruption.severity for other in cells if other.corruption is not None})
    threat = value.column.corruption or ("clean" if cell.attack is None else cell.attack.label())
    return {
        "measured": 100 * measured.value,
        "low": 100 * measured.low,
        "high": 100 * measured.high,
        "difference": 100 * measured.value - value.accuracy,
        "images": measured.n,
        "dataset_measured": labels["dataset"],
        "classifier_measured": labels["classifier"],
        "defence_measured": labels["defence"],
        "threat_measured": threat,
        "seed": cell.seed,
        "cell": cell.id,
        "differs": "; ".join(differences(value, cell, severities)),
    }


def _average(results: Results, cell: Cell) -> npt.NDArray[np.float64]:
    """Return the share of right draws of each image; whether it is right if several draws make one answer."""
    if cell.defence.aggregation == "single":
        return np.asarray(results.correct(cell).mean(axis=1), dtype=np.float64)
    answers = results.answers(cell)
    assert answers is not None  # the cell is complete
    voted = aggregate(answers.prediction, answers.mean_probability, cell.defence.aggregation)
    return np.asarray(voted == answers.label, dtype=np.float64)


def differences(value: Published, cell: Cell, severities: Sequence[int] = ()) -> list[str]:
    """List settings of a cell that are not those of the paper, or that it does not state."""
    purifier = cell.defence.purifier
    level = purifier.noise_level
    measured: dict[str, object] = {"images": cell.images.count, "draws": cell.defence.draws}
    if purifier.purifier != "none":
        measured |= {
            "t_star": None if level is None else level.t_star,
            "schedule": purifier.parameter("schedule"),
            "scale": purifier.parameter("scale"),
        }
    if cell.attack is not None:
        measured["attack_steps"] = cell.attack.parameter("steps")
    found = []
    if not _same_data(value, cell):
        found.append(f"data: published {value.dataset}, measured {cell.images.dataset.label()}")
    if not _same_classifier(value, cell):
        found.append(f"classifier: published {value.classifier}, measured {cell.classifier.label()}")
    if not (_same_budget(value, cell) and _same_attack(value, cell)) and cell.attack is not None:
        budget = format_eps(cell.attack.eps)
        found.append(f"attack: published {value.column.label()}, measured {cell.attack.label()} {budget}")
    for key, have in measured.items():
        stated = value.settings.get(key)
        if have is not None and have != stated:
            found.append(f"{key}: published {'not stated' if stated is None else stated}, measured {have}")
    if value.classifier is None:
        found.append("classifier: published not stated")
    if value.column.threat == "attack" and value.column.adaptive is None and cell.attack is not None:
        sees = "does not see" if cell.attack.static else "sees"
        found.append(f"attack: published not stated whether it sees the purifier, measured {sees} it")
    if severities and tuple(severities) != SEVERITIES:
        found.append(f"severities: measured {', '.join(map(str, severities))} alone")
    if cell.corruption is not None and cell.corruption.origin != "official":
        found.append("images: published the official arrays, measured generated ones")
    return found
