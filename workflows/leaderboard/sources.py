"""What a board is made of: sweeps in stores, as a user names them.

* ``SWEEP``: a sweep file or bundled sweep, in the store of the option ``--store``;
* ``SWEEP@STORE``: the same in a store of its own;
* ``STORE``: a folder or bucket, and in it every sweep on record of which something is committed.
"""

import os
import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from defense.errors import InvalidInput, PuregridError
from defense.redaction import redacted
from workflows.analysis import Analysis
from workflows.assets.bundled import find_sweep
from workflows.grid.load import Sweep, load_sweep
from workflows.planning.plan import make_plan
from workflows.regression.baselines import referenced
from workflows.results.convergence import extended
from workflows.results.reader import Results
from workflows.results.records import recorded_sweeps, remade
from workflows.store import Store

__all__ = ["Source", "sources_of"]


@dataclass(frozen=True)
class Source:
    """A sweep of the board.

    Arguments:
        number: Its number there, from 1.
        analysis: What its rows show.
        command: The command that computes it.
        name: That of the sweep, with the number where another one has it too.
    """

    number: int
    analysis: Analysis
    command: str
    name: str = ""

    @property
    def results(self) -> Results:
        """Its results."""
        return self.analysis.results

    @property
    def sweep(self) -> Sweep:
        """The sweep."""
        return self.analysis.sweep

    @property
    def file(self) -> str:
        """Name of its file on the site."""
        plain = "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in self.sweep.name)
        return f"{plain}-{self.sweep.id[:8]}.yaml"


def sources_of(names: Sequence[str], store: str, say: Callable[[str], None]) -> list[Source]:
    """Return the sweeps that some names mean, each once, in this order.

    Arguments:
        names: As above; without any it is the store.
        store: The store of sweeps that name none.
        say: Is told what is left out of a store, and why.

    Raises:
        InvalidInput: A name means nothing, or a sweep of which nothing is committed.
        PuregridError: A store without any sweep that can be shown.
    """
    found: dict[tuple[str, str], tuple[Sweep, Store, str]] = {}
    for name in names or (store,):
        for sweep, opened, command in _meant(name, store, say):
            found.setdefault((opened.uri, sweep.id), (sweep, opened, command))
    of_name = Counter(sweep.name for sweep, _, _ in found.values())
    return [
        Source(n, Analysis(Results(opened, sweep)), command, sweep.name + f" (no. {n})" * (of_name[sweep.name] > 1))
        for n, (sweep, opened, command) in enumerate(found.values(), 1)
    ]


def _meant(name: str, store: str, say: Callable[[str], None]) -> Iterator[tuple[Sweep, Store, str]]:
    path, at, its_store = name.partition("@")
    if not at and ("://" in name or os.path.isdir(name)):
        yield from _recorded(name, say)
        return
    opened = Store(its_store or store)
    opened.files.check()
    sweep = extended(referenced(load_sweep(find_sweep(path))), opened)
    if not _committed(sweep, opened):
        raise InvalidInput(f"nothing of it is committed in {opened.uri}: `puregrid run` it first.", where=name)
    yield sweep, opened, f"puregrid run {shlex.quote(path)} --store {shlex.quote(redacted(its_store or store))}"


def _recorded(uri: str, say: Callable[[str], None]) -> Iterator[tuple[Sweep, Store, str]]:
    opened = Store(uri)
    opened.files.check()
    shown = False
    for sweep_id, text, folder in recorded_sweeps(opened):
        try:
            sweep = extended(referenced(remade(sweep_id, text, folder)), opened)
        except PuregridError as error:
            say(f"warning: sweep {sweep_id} of {opened.uri} is left out: {error}")
            continue
        if _committed(sweep, opened):
            shown = True
            file = shlex.quote(f"{sweep.name}.yaml")
            yield sweep, opened, f"puregrid run {file} --store {shlex.quote(redacted(uri))}"
    if not shown:
        raise PuregridError(f"no sweep on record in {opened.uri} has rows: `puregrid run` one first.")


def _committed(sweep: Sweep, store: Store) -> bool:
    planned = make_plan(sweep)
    return planned.committed(store).missing < planned.units
