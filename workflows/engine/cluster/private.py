"""A Ray of one run: on the loopback interface alone, and with a token that is written nowhere.

Who reaches a port of Ray's runs code as you. Ray binds each of its servers to the loopback interface if the node's
address is 127.0.0.1, and otherwise to all interfaces; but ``ray.init`` replaces 127.0.0.1 by the address under which
the machine is reached from outside, except where Ray knows no clusters (macOS, Windows). Here it is told that it
knows none, for as long as it starts. ``docs/running.md`` has the sockets as measured.

A token (Ray 2.52 and later) keeps out the other users of the machine, who reach its loopback interface too. Ray's own
token would lie in ``~/.ray/auth_token``, which it writes with the mode of the umask, mostly for everybody to read.
The token of a run is in the environment of its processes instead, so that nothing need be written below HOME either.
"""

import contextlib
import os
import secrets
import stat
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import ray
from ray import _raylet
from ray._private import parameter, ray_constants, worker

from defense.errors import InvalidInput, PuregridError

__all__ = ["check_token", "has_token", "private", "start"]

_MODE, _TOKEN, _FILE = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
_LONGEST = 1 << 16
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


@contextlib.contextmanager
def private() -> Iterator[None]:
    """Inside the block the environment has what every process of a Ray of one's own needs: a token, and its mode.

    Raises:
        InvalidInput: The user names a token, and it cannot be read.
    """
    check_token()
    given = os.environ.get(_TOKEN) or os.environ.get(_FILE)
    # Metrics are for everybody who asks, without a token; nobody asks a Ray that lives as long as a run.
    own = {_MODE: "token", "RAY_enable_metrics_collection": "0"}
    own |= {} if given else {_TOKEN: secrets.token_hex(32)}
    before = {name: os.environ.get(name) for name in own}
    os.environ.update(own)
    try:
        _read_again()
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        _read_again()


def _read_again() -> None:
    """Have Ray look at the environment again, which it reads once in a process."""
    raylet: Any = _raylet
    raylet.Config.initialize("")
    raylet.AuthenticationTokenLoader.instance().reset_cache()


def start(workers: int) -> None:
    """Start Ray's processes, inside of :func:`private`.

    Raises:
        PuregridError: Ray has another address than 127.0.0.1.
    """
    # Nobody reads the workers' logs as they are written, and one node of a fixed size needs no autoscaler: each would
    # be a process that takes a second of a core to start, and `ray.init` has no option for them.
    lean = partial(parameter.RayParams, include_log_monitor=False, no_monitor=True)
    with patch.object(ray_constants, "ENABLE_RAY_CLUSTER", False), patch.object(parameter, "RayParams", lean):
        ray.init(
            # Without it Ray joins a cluster that happens to run on this machine, and refuses num_cpus.
            address="local",
            num_cpus=workers,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            _node_ip_address="127.0.0.1",
            # Rows never pass through it; Ray's default would reserve a third of the memory.
            object_store_memory=128 * 1024**2,
        )
    address = ray.get_runtime_context().gcs_address
    if not address.startswith(("127.0.0.1:", "[::1]:")):
        raise PuregridError(
            f"Ray {ray.__version__} listens on {address}, where other machines may reach it, although it was given "
            "127.0.0.1. Install the version of Ray that puregrid was tested with."
        )
    # Ray makes its folders for everybody to write to; its sockets and logs are in this one.
    os.chmod(worker._global_node.get_session_dir_path(), stat.S_IRWXU)


def check_token() -> None:
    """Check that the token that the user names can be read, since Ray ends the process if it cannot.

    A token in ``~/.ray/auth_token`` that other users can read is made unreadable to them, and so is its folder.

    Raises:
        InvalidInput: ``RAY_AUTH_TOKEN_PATH`` names no file with a token.
    """
    if os.environ.get(_TOKEN):
        return
    if path := os.environ.get(_FILE):
        if not _text_of(Path(path)):
            raise InvalidInput(
                f"{path!r} is no file with a token that can be read. Give the path of one, made with `openssl rand "
                "-hex 32` and mode 0600, or unset the variable.",
                where=_FILE,
            )
        return
    home = os.environ.get("HOME")
    if home:
        with contextlib.suppress(OSError, ValueError):
            _close(Path(home, ".ray", "auth_token"))


def has_token() -> bool:
    """Return whether there is a token for a cluster that asks for one."""
    home = os.environ.get("HOME")
    return bool(
        os.environ.get(_TOKEN) or os.environ.get(_FILE) or (home and _text_of(Path(home, ".ray", "auth_token")))
    )


def _text_of(path: Path) -> str:
    """Return what a regular file says; nothing where there is none that can be read."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return ""
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.read(_LONGEST).strip()
    except (OSError, ValueError):
        return ""


def _close(token: Path) -> None:
    if not stat.S_ISREG(token.lstat().st_mode):
        return  # a link leads to a file that others may share
    for path in (token, token.parent):
        found = path.stat()
        if found.st_uid == os.getuid() and found.st_mode & _OTHERS:
            path.chmod(stat.S_IMODE(found.st_mode) & stat.S_IRWXU)
