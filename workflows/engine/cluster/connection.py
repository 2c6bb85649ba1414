"""The Ray cluster of a sweep: connect to one or start one, count its room, and notice when its head is gone."""

import contextlib
import os
import socket
import time
from collections.abc import Iterator

import ray

from defense.errors import InvalidInput, PuregridError
from workflows.engine.cluster import private
from workflows.engine.worker import one_line
from workflows.monitoring.progress import phase
from workflows.planning.machine import workers_on

__all__ = ["Head", "cluster", "room", "slots"]

_HEAD_SECONDS = 30.0
"""For so long the head may be silent. After 60 s Ray itself would end this process, without a word of the sweep."""


@contextlib.contextmanager
def cluster(workers: int, address: str | None) -> Iterator[None]:
    """Connect to a Ray cluster, or start one of ``workers`` slots on the loopback interface of this machine.

    Raises:
        PuregridError: Ray could not be started, twice, or nothing answers at the address, or it refuses the token.
        InvalidInput: A token is needed or named, and cannot be read.
    """
    with contextlib.ExitStack() as stack:
        if address is None:
            stack.enter_context(private.private())
            with phase("starting Ray"):
                _start(workers)
        else:
            with phase(f"connecting to Ray at {address}"):
                _connect(address)
        lost = False
        try:
            yield
        except _HeadLost:  # Ray would wait for it, and end this process before the error is reported
            lost = True
            raise
        finally:
            if not lost:
                ray.shutdown()


def _start(workers: int) -> None:
    """Start a Ray of this run; twice, since Ray raises whatever it raises when a busy machine is too slow for it."""
    try:
        private.start(workers)
    except Exception:
        ray.shutdown()
        try:
            private.start(workers)
        except Exception as error:
            ray.shutdown()
            raise PuregridError(
                f"Ray could not be started on this machine ({one_line(error)}). Is it overloaded, out of memory "
                "or out of disk? Its logs are in its session folder, by default below /tmp/ray (RAY_TMPDIR names "
                "another)."
            ) from error


def _connect(address: str) -> None:
    private.check_token()
    if os.environ.get("RAY_AUTH_MODE", "").lower() == "token" and not private.has_token():
        raise InvalidInput(
            "the cluster asks for a token and there is none: copy the head's ~/.ray/auth_token to this machine (mode "
            "0600), or give RAY_AUTH_TOKEN_PATH.",
            where="RAY_AUTH_MODE",
        )
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise PuregridError(
            f"no Ray cluster answers at {address} ({one_line(error)}). Start one with `ray start --head`, or run "
            "without --address on this machine."
        ) from error
    except ray.exceptions.AuthenticationError as error:
        raise PuregridError(
            f"the Ray cluster at {address} refuses the token ({one_line(error)}). Give the token of its head in "
            "~/.ray/auth_token, or in a file that RAY_AUTH_TOKEN_PATH names."
        ) from error


class _HeadLost(PuregridError):
    """The head of the cluster does not answer."""


def room(threads: int, gpus_per_worker: float) -> int:
    """Count the workers that the nodes have room for. A worker lies on one node, and a share of a GPU on one GPU."""
    workers = 0
    for node in ray.nodes():
        if node["Alive"]:
            have = node["Resources"]
            fits = int(have.get("CPU", 0) // threads)
            if gpus_per_worker:
                fits = min(fits, workers_on(int(have.get("GPU", 0)), gpus_per_worker))
            workers += fits
    return workers


def slots(threads: int, gpus_per_worker: float) -> int:
    """Count the workers that the connected cluster has room for.

    Raises:
        InvalidInput: None at all.
    """
    workers = room(threads, gpus_per_worker)
    if not workers:
        have = ray.cluster_resources()
        raise InvalidInput(
            f"there is no room for a worker that takes {threads} CPUs and {gpus_per_worker:g} GPUs: the cluster has "
            f"{have.get('CPU', 0):g} CPUs and {have.get('GPU', 0):g} GPUs. Ask for less, or give --workers N if "
            "nodes will join.",
            where="--gpus-per-worker" if gpus_per_worker else "compute.threads",
        )
    return workers


class Head:
    """The process that everything in a Ray cluster depends on (its GCS).

    Attributes:
        lost: Whether it was given up.
    """

    def __init__(self) -> None:
        address = ray.get_runtime_context().gcs_address
        # Where it cannot be reached like that, nothing is concluded from silence.
        self._address = address if _answers(address) else None
        self.lost = False

    def need(self) -> None:
        """Wait for the head if it does not answer; calls of Ray that need it would hang.

        Raises:
            PuregridError: It is lost.
        """
        end = time.monotonic() + _HEAD_SECONDS
        while self._address is not None and not _answers(self._address):
            if time.monotonic() > end:
                self.lost = True
                raise _HeadLost(
                    f"the head of the Ray cluster at {self._address} has not answered for {_HEAD_SECONDS:g} s, and "
                    "without it no worker gets any work. What is committed stays: start a cluster and run the same "
                    "command again."
                )
            time.sleep(1)


def _answers(address: str) -> bool:
    """Return whether anything accepts connections at ``host:port``."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except OSError:
        return False
    return True
