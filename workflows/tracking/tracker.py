"""MLflow as a sweep meets it: asked before the compute, written to after it, and no reason to lose either."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from defense.errors import PuregridError
from workflows.grid.load import Sweep
from workflows.monitoring.mlflow_client import ASKING_SECONDS, BoundedClient, cause, shown
from workflows.tracking.experiments import writable_experiment

__all__ = ["Tracker"]

_LATER = "Rows are in the store either way, and `puregrid track SWEEP` logs them later."
_DO = "Start the server, or correct --mlflow (or MLFLOW_TRACKING_URI), or give --mlflow off."


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
            self._find()
        except Exception as error:  # MLflow raises whatever its stores and servers raise
            trouble = f"MLflow at {shown(self.uri)} cannot be written: {cause(error)}."
            if self.strict:
                raise PuregridError(f"{trouble} {_DO} Nothing was computed.") from error
            self.say(f"warning: {trouble} The sweep goes on without it and asks it again at the end. {_LATER} {_DO}")
            return
        self.say(f"MLflow at {shown(self.uri)}: ok")

    def write(self, log: Callable[[str], str]) -> None:
        """Log the sweep.

        Arguments:
            log: From the tracking URI to the id of the run.

        Raises:
            PuregridError: That failed, and the tracker is strict.
        """
        try:
            if not self.reached:  # at the start; it may have come back
                self._find()
            log(self.uri)
        except Exception as error:  # MLflow raises whatever its stores and servers raise
            trouble = f"the sweep could not be logged to MLflow at {shown(self.uri)}: {cause(error)}."
            if self.strict:
                raise PuregridError(f"{trouble} {_LATER} {_DO}") from error
            self.say(f"warning: {trouble} {_LATER} {_DO}")
            return
        if self.uri.startswith(("http://", "https://")):
            self.say(f"logged to MLflow; look at it at {shown(self.uri)}")
        else:
            where = shlex.quote(shown(self.uri))
            self.say(f"logged to MLflow; look at it with: mlflow ui --backend-store-uri {where} --host 127.0.0.1")

    def _find(self) -> None:
        local = self.uri.startswith("sqlite:")
        # A database on this machine has its own errors; making its tables takes seconds.
        client = BoundedClient(self.uri, 4 * ASKING_SECONDS if local else ASKING_SECONDS)
        folder = None if "://" in self.store_uri else Path(self.store_uri)
        writable_experiment(client, self.sweep.name, folder, self.say)
        self.reached = True
