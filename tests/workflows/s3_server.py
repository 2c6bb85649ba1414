"""A real S3 server on the loopback interface, with the weaknesses that a test asks for.

moto's conditional PUT is a look and then a write, in threads; S3's is atomic. So requests are served one at a time.
"""

from __future__ import annotations

import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import boto3
from heads import free_port
from moto.s3.models import s3_backends
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server


class _Silent(WSGIRequestHandler):
    def log(self, type: str, message: str, *args: Any) -> None:
        pass


class S3Server:
    """moto's S3; its objects outlive ``stop`` and ``start``.

    ``conditional``: whether ``If-None-Match`` is honoured, as old or simple servers do not. ``answer``: called with
    method and path before a request is served; a number that it returns is the HTTP status of a refusal.
    ``requests`` counts methods.
    """

    def __init__(self) -> None:
        self._app = DomainDispatcherApplication(create_backend_app)
        self._lock = threading.Lock()
        self._server: BaseWSGIServer | None = None
        self._thread: threading.Thread | None = None
        self.port = free_port()
        self.conditional = True
        self.answer: Callable[[str, str], int | None] = lambda method, path: None
        self.requests: Counter[str] = Counter()

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def _serve(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        with self._lock:
            self.requests[environ["REQUEST_METHOD"]] += 1
            status = self.answer(environ["REQUEST_METHOD"], environ["PATH_INFO"])
            if status is not None:
                start(f"{status} refused", [("Content-Type", "text/plain"), ("Content-Length", "0")])
                return [b""]
            if not self.conditional:
                environ.pop("HTTP_IF_NONE_MATCH", None)
            return list(self._app(environ, start))

    def start(self) -> None:
        self._server = make_server("127.0.0.1", self.port, self._serve, threaded=True, request_handler=_Silent)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        assert self._server is not None and self._thread is not None
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def client(self) -> Any:
        return boto3.client(
            "s3",
            endpoint_url=self.environment["AWS_ENDPOINT_URL"],
            aws_access_key_id="test",
            aws_secret_access_key="test",
            region_name="us-east-1",
        )

    def fill(self, bucket: str, keys: Iterable[str], content: bytes) -> None:
        """Put many objects, without a request for each."""
        backend = s3_backends["123456789012"]["aws"]
        for key in keys:
            backend.put_object(bucket, key, content)

    def keys(self, uri: str, prefix: str) -> list[str]:
        """Paths below a URI that start with a prefix; the server is asked nothing."""
        bucket, root = uri.removeprefix("s3://").split("/", 1)
        with self._lock:
            keys = list(s3_backends["123456789012"]["aws"].buckets[bucket].keys.keys())
        return [key.removeprefix(f"{root}/") for key in keys if key.startswith(f"{root}/{prefix}")]

    def new_bucket(self) -> str:
        """URI of a folder in a bucket of its own."""
        name = uuid.uuid4().hex
        self.client().create_bucket(Bucket=name)
        return f"s3://{name}/deep/store"
