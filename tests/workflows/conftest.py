"""The S3 server that the suites of the store share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from s3_server import S3Server


@pytest.fixture(scope="session")
def _s3_session() -> Iterator[S3Server]:
    from s3_server import S3Server

    server = S3Server()
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        yield server
    server.stop()


@pytest.fixture
def s3(_s3_session: S3Server) -> Iterator[S3Server]:
    """A local S3 server whose address and credentials are in the environment; its weaknesses end with the test."""
    yield _s3_session
    _s3_session.conditional = True
    _s3_session.answer = lambda method, path: None
