"""Text without the credentials that URIs in it carry: the one function for what is printed, logged, stored or sent.

A URI may hold credentials in three places, and :func:`redacted` replaces each by ``...``:

* before the host: ``postgresql://ann:secret@db/mlflow``, also behind another protocol, ``simplecache::s3://key:secret@``;
* in a parameter whose name speaks of it: ``?password=``, ``&X-Amz-Signature=``, percent-encoded or not;
* in a field of that kind outside of a URI, as drivers print their options: ``password=secret``, ``'secret': 'abc'``.

Errors of other libraries may repeat a password without its URI, or decoded. So credentials of URIs that were seen
once, :func:`remember`, are replaced wherever they stand alone.
"""

import re
from collections.abc import Iterator, Mapping
from typing import TextIO
from urllib.parse import unquote, unquote_plus

__all__ = ["RedactingStream", "has_credentials", "redacted", "remember", "remember_environment"]

_GAP = "..."

_SCHEME = r"(?P<scheme>[A-Za-z][A-Za-z0-9+.\-]*)://"
_NEXT = r"(?!::[A-Za-z][A-Za-z0-9+.\-]*://)"
_URI = re.compile(rf"{_SCHEME}(?P<rest>(?:{_NEXT}[^\s\"'<>`|])*)")
_WHOLE_URI = re.compile(rf"{_SCHEME}(?P<rest>(?:{_NEXT}\S)*)")
"""A URI in a text, and one that is given alone, in which quotes are a part of it."""

_NAMED_USERS = {"abfs", "abfss", "adl", "hdfs", "sftp", "smb", "ssh", "wasb", "wasbs", "webhdfs"}
"""Schemes in which a name alone before the host is a container or a login, and no credential."""

_BY_SLASH = {"http", "https", "ray"}
"""Schemes whose host ends at the first slash for every reader; others read a password on beyond it."""

_SECRET_NAME = re.compile(
    r"pass(?!ive|ed|es|ing)|pwd|secret|token|signature|credential|api_?key|access_?key|account_?key|private_?key"
    r"|shared_?key|sas|auth(?!or(?!i[sz]))|bearer|(?:^|[_\-.])(?:sig|key|pw)$",
    re.IGNORECASE,
)

_PARAMETER = re.compile(r"(?P<before>[?&;])(?P<name>[^=&;?#\s\"'<>]{1,80})=(?P<value>[^&;#\s\"'<>]*)")

_FIELD = re.compile(
    r"(?P<name>[\"']?\b[A-Za-z_\-]*(?:password|passwd|passphrase|pwd|secret|token|access_?key(?:_?id)?|account_?key"
    r"|api_?key|credential|signature|sas_?token)s?[A-Za-z_\-]*[\"']?)"
    r"(?P<is>\s*=\s*|\s*:\s+|[\"']\s*:\s*)"
    r"(?P<value>\"[^\"\n]*\"|'[^'\n]*'|[^\s,;&)}\]\"']+)",
    re.IGNORECASE,
)

_ENCODED = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*(?:%3A|:)(?:%2F|/){2}[^\s\"'<>`|&;]*", re.IGNORECASE)
"""A URI inside of another, percent-encoded."""

_SECRET_VARIABLE = re.compile(r"(?:PASSWORD|PASSWD|SECRET|TOKEN|SECRET_KEY|ACCESS_KEY|ACCESS_KEY_ID|API_KEY)$")

_AWS_KEY = re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b")

_SHORTEST = 6
"""A shorter credential is replaced in its URI only: alone it would be found inside of words."""

_remembered: set[str] = set()


def redacted(text: str) -> str:
    """Return a text without the credentials of the URIs in it.

    Arguments:
        text: A URI, a message, a traceback, a line of a log.
    """
    for secret in sorted(_remembered, key=len, reverse=True):
        if secret in text:
            text = text.replace(secret, _GAP)
    if "%2F" in text or "%2f" in text or "%3A" in text or "%3a" in text:
        text = _ENCODED.sub(_without_encoding, text)
    if "://" in text:
        text = _URI.sub(lambda match: f"{match['scheme']}://{_without_user(match['scheme'], match['rest'])}", text)
    if "=" in text:
        text = _PARAMETER.sub(_without_value, text)
    if "=" in text or ":" in text:
        text = _FIELD.sub(_without_field, text)
    return _AWS_KEY.sub(_GAP, text)


def has_credentials(uri: str) -> bool:
    """Return whether a URI carries credentials; a text without ``://`` is none."""
    return "://" in uri and any(True for _ in _credentials(uri))


def remember(uri: str | None) -> None:
    """Note the credentials of a URI, so that :func:`redacted` finds them where they stand without it.

    Arguments:
        uri: What a user gave as a URI; anything else is ignored.
    """
    if uri is None or "://" not in uri:
        return
    for secret in _credentials(uri):
        for form in (secret, unquote(secret), unquote_plus(secret)):
            if len(form) >= _SHORTEST and form.strip("."):
                _remembered.add(form)


def remember_environment(variables: Mapping[str, str]) -> None:
    """Note what environment variables hold: credentials of their URIs, and values that are credentials by their name.

    Arguments:
        variables: ``os.environ``.
    """
    for name, value in variables.items():
        remember(value)
        if _SECRET_VARIABLE.search(name) and len(value) >= _SHORTEST and not value.startswith("/"):
            _remembered.add(value)


def _credentials(uri: str) -> Iterator[str]:
    """The passwords in a URI: of a user, a token in a user's place, and values of parameters."""
    for match in _WHOLE_URI.finditer(uri):
        scheme, rest = match["scheme"].lower(), match["rest"]
        user = rest[: len(rest) - len(_after_user(scheme, rest))].removesuffix("@")
        name, colon, password = user.partition(":")
        if colon and password:
            # A password that is the user's name is no secret, and is a word of messages.
            if password not in (name, _GAP):
                yield password
            else:
                yield f"{name}:{password}"
        elif name and name != _GAP and scheme not in _NAMED_USERS and scheme in ("http", "https"):
            yield name
    for match in _PARAMETER.finditer(uri):
        if match["value"] not in ("", _GAP) and _is_secret(match["name"]):
            yield match["value"]


def _without_user(scheme: str, rest: str) -> str:
    """What follows ``://`` without user and password."""
    after = _after_user(scheme.lower(), rest)
    user = rest[: len(rest) - len(after)]
    if user.endswith("@"):
        alone = ":" not in user and scheme.lower() in _NAMED_USERS
        return rest if alone else f"{_GAP}@{after}"
    # A URI that was cut at its `@`: what stands where a port would is none.
    cut = re.match(r"(?P<name>[^/@:?#\[\]]*):(?!\d{0,5}(?:[/?#),.;:\]]|$))(?P<password>[^/?#]+)", rest)
    if cut is not None and cut["name"]:
        return f"{_GAP}{rest[cut.end() :]}"
    return rest


def _after_user(scheme: str, rest: str) -> str:
    """What follows ``user:password@``; the whole, where there is none.

    Up to the first ``/``, ``?`` or ``#`` it is the last ``@`` that ends a password. One with such a character in it
    is wrong in http, and read by database drivers.
    """
    authority = re.match(r"[^/?#]*", rest)
    assert authority is not None
    if "@" in authority[0]:
        return rest[authority[0].rindex("@") + 1 :]
    if scheme in _BY_SLASH:
        return rest
    beyond = re.match(r"[^/@:?#\[\]]+:[^@]*@", rest)
    if beyond is None or re.match(r"[^:]*:\d{1,5}[/?]", rest):  # a port, and an `@` in a path
        return rest
    return _after_user(scheme, rest[beyond.end() :])


def _is_secret(name: str) -> bool:
    return _SECRET_NAME.search(unquote(unquote(name))) is not None


def _without_value(match: re.Match[str]) -> str:
    if not match["value"] or not _is_secret(match["name"]):
        return match[0]
    return f"{match['before']}{match['name']}={_GAP}"


def _without_encoding(match: re.Match[str]) -> str:
    plain = unquote(unquote(match[0]))
    return match[0] if not has_credentials(plain) else redacted(plain)


def _without_field(match: re.Match[str]) -> str:
    value = match["value"]
    quote = value[0] if value[0] in "\"'" else ""
    if value.strip("\"'") in ("", _GAP) or value.startswith(_GAP) or re.fullmatch(r"\$\{?\w+\}?|<.*>|None", value):
        return match[0]
    if not quote and ":" in match["is"] and not match["name"].endswith(("'", '"')):
        return match[0]  # prose: ``invalid token: x``
    return f"{match['name']}{match['is']}{quote}{_GAP}{quote}"


class RedactingStream:
    """A text stream that writes everything without credentials, whoever writes: tracebacks, usage errors, others."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write a text without credentials; returns its length, as a stream must."""
        self._stream.write(redacted(text))
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        """Write lines without credentials."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)
