"""MLflow's client with an end to every wait.

By itself MLflow asks a server that does not answer eight times, up to two minutes each, with pauses that double. Here
a request is bounded by MLflow's own variables, and every call by a clock beside it, for a database that is locked or
a bucket behind the server. Only the driver has such a client.
"""

import contextlib
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from threading import Thread
from typing import Any

from defense.errors import InvalidInput, PuregridError
from defense.files import found
from defense.redaction import redacted, remember
from workflows.monitoring.mlflow_uri import client_uri, sqlite_path

__all__ = ["ASKING_SECONDS", "BoundedClient", "NoAnswer", "cause", "is_conflict", "named_uri"]

ASKING_SECONDS = 15.0
"""How long a server may take to say that it is there."""

_CALL_SECONDS = 60.0
"""How long any later call may take; the first one of a local database makes its tables."""

_VARIABLES = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # Otherwise the end of a run costs a request more, and its address is printed to stdout among results.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}

_OF_SQLITE = {"MLFLOW_SQLALCHEMYSTORE_POOLCLASS": "NullPool"}

_QUIET = {
    "urllib3.connectionpool": logging.ERROR,
    "mlflow.store.db.utils": logging.CRITICAL,  # it logs every error that it raises, with its traceback
    "alembic": logging.WARNING,
}


class NoAnswer(PuregridError):
    """MLflow did not answer in time."""


class BoundedClient:
    """An ``MlflowClient`` of which every method returns or raises in time.

    After one that did not, all others raise at once.

    Arguments:
        uri: Tracking URI.
        seconds: For all calls together; by default there is a bound of each call alone.
    """

    def __init__(self, uri: str, seconds: float | None = None) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
        remember(uri)
        from mlflow import MlflowClient  # seconds of imports, which are not the server's

        # A connection to a database file that was replaced meanwhile would write to the old one: none is kept.
        self._variables = _VARIABLES if sqlite_path(uri) is None else {**_VARIABLES, **_OF_SQLITE}
        self._until = None if seconds is None else time.monotonic() + seconds
        self._seconds = _CALL_SECONDS if seconds is None else seconds
        self._silent = False
        self._uri = uri
        self._client = self._in_time(lambda: MlflowClient(tracking_uri=client_uri(uri)))

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """Return a method of ``MlflowClient``, bounded."""

        def call(*arguments: Any, **options: Any) -> Any:
            return self._in_time(lambda: getattr(self._client, name)(*arguments, **options))

        return call

    def server_version(self) -> str | None:
        """Return the version that a server says it has; None for a database, or a server that says none."""
        if not self._uri.startswith(("http://", "https://")):
            return None

        def asked() -> str | None:
            from mlflow.utils.credentials import get_default_host_creds
            from mlflow.utils.rest_utils import http_request

            answer = http_request(
                get_default_host_creds(client_uri(self._uri)), "/version", "GET", raise_on_status=False
            )
            said = str(answer.text).strip()
            return said if answer.status_code == 200 and re.fullmatch(r"\d+\.\d+[\w.]*", said) else None

        found: str | None = self._in_time(asked)
        return found

    def _in_time(self, call: Callable[[], Any]) -> Any:
        left = self._seconds if self._until is None else min(self._seconds, self._until - time.monotonic())
        results: list[Any] = []
        errors: list[BaseException] = []

        def run() -> None:
            try:
                results.append(call())
            except BaseException as error:  # the caller raises it
                errors.append(error)

        if not self._silent and left > 0:
            thread = Thread(target=run, daemon=True)  # one that hangs must not keep the process
            with _bounded_requests(self._variables):
                thread.start()
                thread.join(left)
        if errors:
            raise errors[0]
        if not results:
            self._silent = True
            raise NoAnswer(f"no answer within {self._seconds:g} s")
        return results[0]


@contextlib.contextmanager
def _bounded_requests(variables: Mapping[str, str]) -> Iterator[None]:
    """MLflow's variables during a call of ours, those that are not set; its retries are no news for the terminal.

    Nor are the tables that it makes in a new database; who has imported MLflow before us gave it its own level.
    """
    new = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(new)
    before = {name: logging.getLogger(name).level for name in _QUIET}
    for name, level in _QUIET.items():
        logging.getLogger(name).setLevel(level)
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
        for name in new:
            os.environ.pop(name, None)


def named_uri(uri: str | None, where: str) -> str | None:
    """Return the tracking URI that a user named, after a look at the file of a database on this machine.

    Arguments:
        uri: The option, or None.
        where: Its name, for messages.

    Raises:
        InvalidInput: It is empty, or names what can be no database. One that cannot be reached or made is MLflow's to
            report.
    """
    if uri is None:
        return None
    if not uri.strip():
        raise InvalidInput("the tracking URI is empty: give one, or leave the option out.", where=where)
    if (path := sqlite_path(uri)) is not None:
        found(path, "the MLflow database", where=where)
    return uri


def cause(error: Exception) -> str:
    """What is behind an error, in one line without a password: the system's error, if that is where it begins."""
    if isinstance(error, PuregridError):
        return str(error).rstrip(".")
    chain: list[BaseException] = [error]
    while (below := chain[-1].__cause__ or chain[-1].__context__) is not None and below not in chain:
        chain.append(below)
    system = [link for link in chain if isinstance(link, OSError) and link.errno is not None]
    first = (str(system[-1] if system else error).strip().splitlines() or [""])[0]
    return redacted(f"{type(system[-1] if system else error).__name__}: {first}")[:300]


def is_conflict(error: Exception) -> bool:
    """Return whether MLflow refused what another client was doing at the same time, so that it may be tried again.

    Two that set one tag, of which neither is there yet, meet in the database; one of them is refused.
    """
    from mlflow.exceptions import MlflowException

    link: BaseException | None = error
    while link is not None:
        if isinstance(link, (OSError, NoAnswer)):
            return False
        link = link.__cause__ or link.__context__
    return isinstance(error, MlflowException)
