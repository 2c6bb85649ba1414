r"""The board: defences with their numbers at every budget, from whichever sweep has the best of each.

A defence is one by its specs: data set, classifier and purifier with the hashes of their weights, and how its draws
become an answer; neither a label, a seed nor a sweep is part of it. Its numbers at a budget are

* ``clean``: Avg on clean images;
* ``published``: Avg under the attack of its authors (``as-published: NAME``, or one that is recognised as such);
* ``strongest``: the lowest Avg under any attack; ``worst`` and ``vote``: likewise of Wor-M and of the majority vote;
* ``other``: the lowest Avg under attacks that are not its authors';
* ``certified``: the best over sigma at one l_2 radius; ``corruptions``: the mean over the common corruptions.

**Where several sweeps, or seeds of one, have the same number,** that counts which comes from the strongest kind of
attack (a ladder or ``strongest``, before other attacks that know the defence, before static ones), then the one of
most images, then that whose attack took the most network evaluations an image, then that of the sweep named first.

A defence of a sweep enters with all of its specs on record in the store and with the digests of its data and weights;
one that lacks any is left out whole, and listed.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from defense.spec import digest
from workflows.documents.authors import AuthorsSetting, authors_setting, recognised
from workflows.grid.cells import Cell
from workflows.leaderboard.entries import Entry, Line
from workflows.leaderboard.numbers import attacked, certified, corrupted, number_of
from workflows.leaderboard.sources import Source
from workflows.tables.table import missing, records

__all__ = ["Board", "board_of"]


@dataclass(frozen=True)
class Board:
    """What a site shows.

    Arguments:
        sources: The sweeps.
        entries: The defences, in the order of their first lines.
        lines: Lines, from the best on of each data set and budget, struck ones last.
        left_out: What does not enter, and why.
    """

    sources: Sequence[Source]
    entries: Sequence[Entry]
    lines: Sequence[Line]
    left_out: Sequence[str]


def board_of(sources: Sequence[Source]) -> Board:
    """Return the board of some sweeps."""
    entries: dict[str, Entry] = {}
    left_out: dict[str, None] = {}
    for source in sources:
        cells, without = list[tuple[str, Cell]](), set[str]()
        for cell in source.sweep.cells:
            if not source.results.images(cell):
                continue
            key, labels = _key(cell), source.sweep.labels[cell.id]
            reason = _lacking(source, cell)
            if reason:
                without.add(key)
                left_out[f"{labels['defence']}, {labels['classifier']} on {labels['dataset']}: {reason}"] = None
            cells.append((key, cell))
        for key, cell in cells:
            if key in without:  # whole, as what is left out may be its lowest number
                continue
            labels = source.sweep.labels[cell.id]
            entry = entries.setdefault(
                key, Entry(key, cell, labels["defence"], labels["dataset"], labels["classifier"])
            )
            entry.places.setdefault(source.number, (source, []))[1].append(cell)
    for entry in entries.values():
        _measure(entry)
    _name_apart(entries.values())
    lines = sorted((line for entry in entries.values() for line in entry.lines), key=_order(entries.values()))
    first = dict.fromkeys(line.entry.key for line in lines)
    return Board(sources, [entries[key] for key in first], lines, tuple(left_out))


def _key(cell: Cell) -> str:
    # Of a defence that votes the draws are a part; others are only judged by more or fewer of them.
    votes = "" if cell.defence.aggregation == "single" else f"{cell.defence.aggregation} {cell.defence.draws}"
    parts = [cell.images.dataset.id, cell.classifier.id, cell.defence.purifier.id, votes]
    return digest(" ".join([*parts, *filter(None, [cell.defence.until])]))[:10]


def _lacking(source: Source, cell: Cell) -> str:
    """Return what a cell lacks to enter the board; empty if nothing."""
    if cell.defence.until is not None:
        return f"its draws stop (`until: {cell.defence.until}`), so its Avg is not known: run it without"
    rows = cell.stages[0].id
    if source.results.store.spec(rows) is None:
        return f"the spec of its rows ({rows}) is not on record in the store"
    if not cell.images.dataset.digest:
        return "its data have no digest"
    parts = [("classifier", cell.classifier), *cell.defence.purifier.parts()]
    without = [name for name, part in parts if getattr(part, "sha256", "none") == "" or _unhashed(part)]
    return f"no digest of the weights: {', '.join(without)}" if without else ""


def _unhashed(part: Any) -> bool:
    """Whether a part has a file of weights without its hash."""
    return bool(getattr(part, "weights", None) or getattr(part, "path", None)) and not getattr(part, "sha256", None)


def _measure(entry: Entry) -> None:
    """Fill in the lines of an entry."""
    lines: dict[tuple[str | None, float], Line] = {}
    ours = {cell.id for _, cell in entry.cells}
    settings = _settings(entry)
    entry.setting = next((setting for setting in settings.values() if setting is not None), None)
    for source, cells in entry.places.values():
        cell_of = {cell.id: cell for cell in cells}
        budgets: dict[tuple[str | None, float, int], list[dict[str, Any]]] = {}
        for row in records(source.analysis.robustness):
            if row["cell"] not in ours or row["cell"] not in cell_of or missing(row.get("avg")):
                continue
            if row["attack"] == "clean":
                number = number_of(source, cell_of[row["cell"]], row, "avg", "clean images")
                entry.candidates.setdefault("clean", []).append(number)
            else:
                budgets.setdefault((row["norm"], row["eps"], row["seed"]), []).append(row)
        for (norm, eps, _), rows in budgets.items():
            line = lines.setdefault((norm, round(eps, 9)), Line(entry, norm, eps))
            for name, number in attacked(source, cell_of, rows, settings):
                line.candidates.setdefault(name, []).append(number)
        for name, number in (*certified(source, cell_of), *corrupted(source, cell_of)):
            entry.candidates.setdefault(name, []).append(number)
        judged = next((cell for cell in cells if cell.certificate is None), None)
        if judged is not None and entry.evaluations != entry.evaluations:
            entry.evaluations = source.results.evaluations(judged) / judged.defence.draws
    entry.lines = list(lines.values()) or [Line(entry, None, 0.0)]


def _settings(entry: Entry) -> dict[str, AuthorsSetting | None]:
    """Return of each attacked cell the setting of its authors' attack: as named, else as recognised; no other's."""
    purifier, named = entry.cell.defence.purifier, entry.named
    attacks = {cell.id: cell.attack for _, cell in entry.cells if cell.attack is not None}
    theirs: dict[str, AuthorsSetting | None] = {}
    for source, _ in entry.places.values():
        for attack in attacks.values():
            for setting in map(authors_setting, sorted(source.sweep.names.get(attack.id, ()))):
                if setting.is_of(purifier, named):
                    theirs[attack.id] = setting
    if not theirs:
        theirs = {attack.id: recognised(purifier, attack, named) for attack in attacks.values()}
    return {cell: theirs.get(attack.id) for cell, attack in attacks.items()}


def _name_apart(entries: Iterable[Entry]) -> None:
    """Give entries that several sweeps call alike their ids as names."""
    called: dict[tuple[str, ...], list[Entry]] = {}
    for entry in entries:
        called.setdefault((entry.dataset, entry.classifier, entry.label), []).append(entry)
    for alike in called.values():
        for entry in alike if len(alike) > 1 else ():
            entry.label = f"{entry.label} ({entry.key[:4]})"


def _order(entries: Iterable[Entry]) -> Callable[[Line], tuple[Any, ...]]:
    place = {name: i for i, name in enumerate(dict.fromkeys(entry.dataset for entry in entries))}

    def key(line: Line) -> tuple[Any, ...]:
        strongest, clean = line.number("strongest"), line.number("clean")
        value = -1.0 if strongest is None else strongest.value
        return (
            *(place[line.entry.dataset], bool(line.struck), line.norm is None, str(line.norm), -line.eps),
            *(not line.adaptive, -value, 0.0 if clean is None else -clean.value),
        )

    return key
