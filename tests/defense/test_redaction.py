"""No credential of a URI survives in a text, in whatever form it came; and what holds none stays as it is."""

from __future__ import annotations

import io
import pickle
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loops import every

from defense import redaction
from defense.errors import InvalidInput, PuregridError
from defense.redaction import RedactingStream, has_credentials, redacted, remember, remember_environment

CANARY = "c4n4ry-S3CR3T"


@pytest.fixture(autouse=True)
def nothing_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redaction, "_remembered", set())


@every(
    ("text", "expected"),
    [
        ("http://ann:{}@host:5000/path", "http://...@host:5000/path"),
        ("postgresql://ann:{}@db/mlflow", "postgresql://...@db/mlflow"),
        ("postgresql+psycopg2://ann:{}@db:5432/mlflow?sslmode=require", None),
        ("https://{}@host/path", "https://...@host/path"),
        ("simplecache::s3://key:{}@bucket/rows", "simplecache::s3://...@bucket/rows"),
        ("filecache::simplecache::https://ann:{}@host/x", "filecache::simplecache::https://...@host/x"),
        ("zip://a.csv::s3://key:{}@bucket/x.zip", "zip://a.csv::s3://...@bucket/x.zip"),
        ("abfs://container:{}@account/x", "abfs://...@account/x"),
        ("https://account.blob.core.windows.net/c?sv=2020&sig={}", None),
        ("https://bucket/x?AWSAccessKeyId={0}&Expires=1&Signature={0}", None),
        ("https://bucket/x?X-Amz-Credential={0}&X-Amz-Signature={0}&X-Amz-Security-Token={0}", None),
        ("s3://bucket/x?password={}", "s3://bucket/x?password=..."),
        ("s3://bucket/x?a=1;pass%77ord={}", None),
        ("s3://bucket/x?pwd={}&timeout=5", "s3://bucket/x?pwd=...&timeout=5"),
        ("mysql://u:p{}/with/slashes@db/x", "mysql://...@db/x"),
        ("mysql://u:p@{}@db/x", "mysql://...@db/x"),
        ("ray://ann:{}@head:10001", "ray://...@head:10001"),
        ("sweep file 's3://ann:{}' was cut at its @", "sweep file 's3://...' was cut at its @"),
        ("first postgresql://a:{0}@h/d, then (https://b:{0}@h)", "first postgresql://...@h/d, then (https://...@h)"),
        ("cache?url=s3%3A%2F%2Fkey%3A{}%40bucket%2Fx", None),
        ("host=db user=ann password={} port=5432", "host=db user=ann password=... port=5432"),
        ("{{'key': 'AKIAIOSFODNN7EXAMPLE', 'secret': '{}'}}", "{{'key': '...', 'secret': '...'}}"),
        ('{{"aws_secret_access_key": "{}"}}', '{{"aws_secret_access_key": "..."}}'),
        ("connect(host='h', password='{}')", "connect(host='h', password='...')"),
    ],
)
def test_a_credential_is_taken_out(text: str, expected: str | None) -> None:
    given_text = text.format(CANARY)
    assert CANARY not in redacted(given_text)
    if expected is not None:
        assert redacted(given_text) == expected.replace("{{", "{").replace("}}", "}")
    assert redacted(redacted(given_text)) == redacted(given_text)


@every(
    "text",
    [
        "http://host/a@b",
        "http://host:5000/a@b",
        "http://[::1]:5000/x",
        "ray://127.0.0.1:10001",
        "sqlite:////data/mlflow.db",
        "s3://bucket/prefix",
        "abfs://container@account.dfs.core.windows.net/x",
        "sftp://ann@host/path",
        "https://drive.google.com/uc?id=1WVK&export=download",
        "gs://bucket/x?generation=3",
        "module:attribute and memory://asked",
        'password authentication failed for user "ann"',
        "error: invalid token: x",
        "sizes: passed=3, keys=4, tokens: 5",
        "datasets.0.images.first=100 attacks.1.steps=[5,10]",
    ],
)
def test_a_text_without_one_stays_as_it_is(text: str) -> None:
    assert redacted(text) == text and not has_credentials(text)


@pytest.mark.slow
@given(
    st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Z")), min_size=8, max_size=24).filter(
        lambda text: not set(text) & set("'\"<>`|.") and not text.isdigit()
    ),
    st.sampled_from(
        ["postgresql://ann:{}@db:5432/mlflow", "s3://key:{}@bucket/x", "https://h/x?access_token={}&b=1"]
    ),
)
@settings(max_examples=150, derandomize=True)
def test_whatever_the_password_is_made_of(secret: str, uri: str) -> None:
    """Encoded as it must be, and, for what reads a URI so, as it is."""
    encoded = quote(secret, safe="")
    assert encoded not in redacted(uri.format(encoded)).replace("...", "")
    if not set(secret) & set("@/?#&;"):
        assert secret not in redacted(f"could not connect to {uri.format(secret)}")


def test_one_that_was_seen_is_found_where_it_stands_alone() -> None:
    """As errors of other libraries have it: without its URI, and decoded."""
    assert redacted("nonnumeric port: 'p@ss wörd!@db'") != "..."
    remember("postgresql://ann:p%40ss%20w%C3%B6rd!@db/mlflow")
    assert redacted("nonnumeric port: 'p@ss wörd!'") == "nonnumeric port: '...'"
    assert redacted("auth failed for p%40ss%20w%C3%B6rd!") == "auth failed for ..."
    remember("--mlflow=https://host/?token=t0ken-of-mine")
    assert redacted("401 for t0ken-of-mine") == "401 for ..."


def test_a_password_that_is_a_word_of_messages_is_taken_out_of_its_uri_only() -> None:
    remember("postgresql://mlflow:mlflow@db/mlflow")
    remember("postgresql://ann:run@db/mlflow")
    assert redacted("mlflow ui, then run it") == "mlflow ui, then run it"
    assert redacted("postgresql://mlflow:mlflow@db/mlflow") == "postgresql://...@db/mlflow"


def test_variables_that_are_credentials_by_their_name() -> None:
    remember_environment(
        {"AWS_SECRET_ACCESS_KEY": CANARY, "HOME": "/home/annabel", "RAY_AUTH_TOKEN_PATH": "/some/file"}
    )
    assert (
        redacted(f"signed with {CANARY} in /home/annabel, /some/file")
        == "signed with ... in /home/annabel, /some/file"
    )


def test_errors_of_ours_hold_none() -> None:
    uri = f"s3://key:{CANARY}@bucket"
    for error in (PuregridError(f"no answer from {uri}"), InvalidInput("no store", where=f"--store {uri}")):
        assert CANARY not in str(error) and "s3://...@bucket" in str(error)
        assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_a_stream_that_takes_them_out() -> None:
    below = io.StringIO()
    stream = RedactingStream(below)
    print(f"Traceback: postgresql://ann:{CANARY}@db", file=stream)  # type: ignore[call-overload]
    stream.writelines([f"https://{CANARY}@host\n"])
    assert below.getvalue() == "Traceback: postgresql://...@db\nhttps://...@host\n"
    assert stream.isatty() is False and stream.encoding == below.encoding  # type: ignore[operator]
