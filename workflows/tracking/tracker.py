"""MLflow as a sweep meets it: asked before the compute, written to after it, and no reason to lose either."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from defense.errors import PuregridError
from defense.redaction import redacted
from workflows.grid.load import Sweep
from workflows.monitoring.mlflow_client import ASKING_SECONDS, BoundedClient, cause, is_conflict
from workflows.monitoring.mlflow_database import Busy, damage, exclusive, prepare, set_aside
from workflows.monitoring.mlflow_uri import how_to_look, is_own, sqlite_path
from workflows.tracking.experiments import Places, writable_experiment

__all__ = ["Tracker"]

_LATER = "Rows are in the store either way, and `puregrid track SWEEP` logs them later."
_DO = "Start the server, or correct --mlflow (or MLFLOW_TRACKING_URI), or give --mlflow off."

_ASKING_OTHERS = 60.0
"""How long the start of a run waits for another driver that writes to MLflow."""


_SERVER = 3
"""The first major version whose servers keep logged models, which the client of puregrid's pin logs."""

_TRIES = 4
"""How often a sweep is logged where drivers on two machines, which no lock parts, get into each other's way."""


@dataclass
class Tracker:
    """Where a sweep is logged.

    Arguments:
        uri: Tracking URI.
        sweep: The sweep.
        store_uri: Its store; artifacts lie there, if it is a folder.
        strict: Whether a tracker that fails is an error. Otherwise it is a warning.
        say: Where notes go.
    """

    uri: str
    sweep: Sweep
    store_uri: str
    strict: bool
    say: Callable[[str], None]
    reached: bool = False

    def ask(self) -> None:
        """Ask MLflow, within seconds, whether the sweep's experiment can be written; say what it answers.

        Raises:
            PuregridError: It cannot be, and the tracker is strict.
        """
        try:
            with exclusive(self._folder, self.say, _ASKING_OTHERS):
                self._find()
        except Busy as error:
            self.say(f"MLflow at {redacted(self.uri)}: {error}; it is asked again at the end.")
            return
        except Exception as error:  # MLflow raises whatever its stores and servers raise
            trouble = f"MLflow at {redacted(self.uri)} cannot be written: {cause(error)}."
            if self.strict:
                raise PuregridError(f"{trouble} {_DO} Nothing was computed.") from error
            self.say(f"warning: {trouble} The sweep goes on without it and asks it again at the end. {_LATER} {_DO}")
            return
        self.say(f"MLflow at {redacted(self.uri)}: ok")

    def write(self, log: Callable[[str], str]) -> None:
        """Log the sweep.

        Arguments:
            log: From the tracking URI to the id of the run.

        Raises:
            PuregridError: That failed, and the tracker is strict.
        """
        try:
            # One driver after the other: two at once would make every run twice.
            with exclusive(self._folder, self.say):
                self._log(log)
        except Exception as error:  # MLflow raises whatever its stores and servers raise
            trouble = f"the sweep could not be logged to MLflow at {redacted(self.uri)}: {cause(error)}."
            if self.strict:
                raise PuregridError(f"{trouble} {_LATER} {_DO}") from error
            self.say(f"warning: {trouble} {_LATER} {_DO}")
            return
        if self.uri.startswith(("http://", "https://")):
            self.say(f"logged to MLflow; look at it at {redacted(self.uri)}")
        else:
            self.say(f"logged to MLflow; look at it with: {how_to_look(self.uri)}")

    @property
    def _folder(self) -> Path | None:
        return None if "://" in self.store_uri else Path(self.store_uri)

    def _log(self, log: Callable[[str], str]) -> None:
        """Log, and once more to a new database if the store's own turns out to be damaged on the way."""
        if self.reached:
            prepare(self.uri, self._folder, self.say)
        else:  # at the start; it may have come back
            self._find()
        for tries_left in reversed(range(_TRIES)):
            try:
                log(self.uri)
                return
            except Exception as error:
                path = sqlite_path(self.uri)
                if not tries_left:
                    raise
                if path is not None and is_own(self.uri, self._folder) and (wrong := damage(error)) is not None:
                    set_aside(path, wrong, self.say)
                    self._find()
                elif is_conflict(error):
                    time.sleep(random.uniform(0.2, 2))  # noqa: S311 - so that the two do not meet again
                else:
                    raise

    def _find(self) -> None:
        local = self.uri.startswith("sqlite")
        prepare(self.uri, self._folder, self.say)
        client = BoundedClient(self.uri, 4 * ASKING_SECONDS if local else ASKING_SECONDS)
        version = client.server_version()
        if version is not None and int(version.partition(".")[0]) < _SERVER:
            raise PuregridError(
                f"its server is MLflow {version}, which cannot hold the models of runs: upgrade it to {_SERVER} or "
                f"newer, or name another"
            )
        writable_experiment(client, self.sweep.name, Places.of(self.uri, self.store_uri), self.say)
        self.reached = True
