"""Retry the operations of a store that does not answer, after 0.5, 1, 2, 4, 8, 8, ... seconds, for about a minute.

An *outage* passes by itself: a connection that breaks, a server that says "slow down", a stale file handle. A
*refusal* does not: no rights, no credentials, no space. Outages are waited out and reported; refusals, and outages
that last longer, become :class:`StoreUnavailable`, on which a run stops: no other unit would fare better, and what
cannot be committed would be computed for nothing.
"""

import errno
import functools
import logging
import os
import time
from collections.abc import Callable
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from defense.errors import InvalidInput, PuregridError, StoreError
from defense.redaction import redacted

__all__ = ["PATIENCE", "StoreUnavailable", "is_full", "is_outage", "patient"]

log = logging.getLogger(__name__)

PATIENCE = "PUREGRID_STORE_PATIENCE"
"""Environment variable: seconds for which an outage is waited out; 60 by default."""

_FIRST_DELAY, _LONGEST_DELAY = 0.5, 8.0

_FULL = {errno.ENOSPC, errno.EDQUOT}
_OUTAGES = {
    errno.EAGAIN,
    errno.EBUSY,  # s3fs: SlowDown, ServiceUnavailable
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.EIO,  # s3fs: any code it does not know, ConditionalRequestConflict and 502 among them
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.ENOTCONN,
    errno.EREMOTEIO,  # s3fs: InternalError
    errno.ESTALE,
    errno.ETIMEDOUT,
}
# Connection errors that are no OSError, by (package, class); botocore's ClientError is an answer, not an outage.
_OUTAGE_CLASSES = {
    ("aiohttp", "ClientConnectionError"),
    ("aiohttp", "ClientPayloadError"),
    ("botocore", "ConnectionError"),
    ("botocore", "HTTPClientError"),
    ("requests", "ConnectionError"),
    ("urllib3", "HTTPError"),
}


class StoreUnavailable(StoreError, OSError):
    """The store cannot be read or written now, whatever the unit: unreachable, full, or not permitted."""


def is_full(error: BaseException) -> bool:
    """Return whether a disk or a quota is full."""
    return isinstance(error, OSError) and error.errno in _FULL


def is_outage(error: BaseException) -> bool:
    """Return whether the same call may succeed a moment later."""
    if isinstance(error, (ConnectionError, TimeoutError)):
        return True
    if isinstance(error, OSError) and error.errno in _OUTAGES:
        return True
    kinds = {(kind.__module__.partition(".")[0], kind.__name__) for kind in type(error).__mro__}
    return not kinds.isdisjoint(_OUTAGE_CLASSES)


class _Files(Protocol):
    uri: str
    waited: float

    def room(self) -> str: ...


_F = TypeVar("_F", bound=_Files)
_P = ParamSpec("_P")
_T = TypeVar("_T")


def patient(operation: Callable[Concatenate[_F, _P], _T]) -> Callable[Concatenate[_F, _P], _T]:
    """Make a file operation wait out outages; it must be one that can be repeated.

    ``FileNotFoundError``, puregrid's own errors and mistakes of the program pass through.

    Raises:
        StoreUnavailable: From the returned operation: a refusal, or an outage that lasts too long.
    """

    @functools.wraps(operation)
    def call(files: _F, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        what = f"{operation.__name__.strip('_').replace('_', ' ')} {args[0] if args else ''}".rstrip()
        began, delay = None, _FIRST_DELAY
        while True:
            try:
                result = operation(files, *args, **kwargs)
            except (FileNotFoundError, PuregridError):  # an answer too
                _over(files, began)
                raise
            except Exception as error:
                if not isinstance(error, OSError) and type(error).__module__ == "builtins":
                    raise
                if not is_outage(error):
                    raise StoreUnavailable(_refusal(files, what, error)) from error
                now = time.monotonic()
                if began is None:
                    began = now
                    log.warning("store %s does not answer (%s: %s); trying again", files.uri, what, _brief(error))
                left = began + _patience() - now
                if left <= 0:
                    raise StoreUnavailable(
                        f"store {files.uri} did not answer for {now - began:.0f} s ({what}: {_brief(error)}). Run "
                        f"the same command again when it does; ${PATIENCE} sets how many seconds to wait."
                    ) from error
                time.sleep(min(delay, left))
                delay = min(2 * delay, _LONGEST_DELAY)
            else:
                _over(files, began)
                return result

    return call


def _over(files: _Files, began: float | None) -> None:
    if began is not None:
        waited = time.monotonic() - began
        files.waited += waited
        log.warning("store %s answers again after %.0f s", files.uri, waited)


def _patience() -> float:
    value = os.environ.get(PATIENCE, "60")
    try:
        return float(value)
    except ValueError as error:
        raise InvalidInput(f"{value!r} is no number of seconds.", where=f"${PATIENCE}") from error


def _refusal(files: _Files, what: str, error: Exception) -> str:
    if is_full(error):
        return (
            f"store {files.uri} is full ({what}: {_brief(error)}); {files.room()}. Make room and run the same "
            "command again: everything committed is kept."
        )
    hint = "credentials (AWS_* variables or the storage's own) and rights" if "://" in files.uri else "its rights"
    return f"store {files.uri} refuses ({what}: {_brief(error)}). Check {hint}, then run the same command again."


def _brief(error: BaseException) -> str:
    return redacted(f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")[:160]
