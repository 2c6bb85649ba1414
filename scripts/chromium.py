"""A headless Chromium, driven over a pipe: pages at any width and in either colour scheme, scripts in them, pictures.

It speaks the DevTools protocol over two file descriptors (``--remote-debugging-pipe``), which needs no other package
and opens no port.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

__all__ = ["CHROMIUM", "Chromium", "Page"]

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
"""The browser, where there is one on PATH."""

_SECONDS = 300.0
"""What one message may take: axe needs a while for a large page on a busy machine."""


class Chromium:
    """A browser, closed at the end of ``with``.

    Raises:
        FileNotFoundError: There is none on PATH.
    """

    def __init__(self) -> None:
        if CHROMIUM is None:
            raise FileNotFoundError("needs chromium on PATH")
        self._profile = tempfile.TemporaryDirectory(prefix="puregrid-chromium-", ignore_cleanup_errors=True)
        low_in, self._out = os.pipe()
        self._in, low_out = os.pipe()
        # The browser reads from descriptor 3 and writes to 4; the shell puts them there, from numbers of neither.
        theirs_in, theirs_out = (fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, 10) for low in (low_in, low_out))
        options = [
            *("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--force-color-profile=srgb"),
            *("--font-render-hinting=none", "--no-first-run", "--remote-debugging-pipe"),
            f"--user-data-dir={self._profile.name}",
        ]
        self._process = subprocess.Popen(  # noqa: S603 - the browser on PATH
            ["/bin/bash", "-c", f'exec "$0" "$@" 3<&{theirs_in} 4>&{theirs_out}', CHROMIUM, *options, "about:blank"],
            pass_fds=(theirs_in, theirs_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        for descriptor in (low_in, low_out, theirs_in, theirs_out):
            os.close(descriptor)
        self._buffer = b""
        self._number = 0
        self.events: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the browser and what it started."""
        os.close(self._out)
        os.close(self._in)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(10)
        self._profile.cleanup()

    def page(self) -> Page:
        """Return a new empty page."""
        target = self.send("Target.createTarget", {"url": "about:blank"})["targetId"]
        session = self.send("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        return Page(self, target, session)

    def send(
        self, method: str, parameters: dict[str, Any] | None = None, session: str | None = None
    ) -> dict[str, Any]:
        """Send a message of the protocol, and return its answer.

        Raises:
            RuntimeError: The browser says that it is an error.
            TimeoutError: There is no answer.
        """
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters or {}}
        if session is not None:
            message["sessionId"] = session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._out, data) :]
        end = time.monotonic() + _SECONDS
        while True:
            answer = self._next(end)
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                result: dict[str, Any] = answer["result"]
                return result
            self.events.append(answer)

    def wait(self, method: str, session: str) -> dict[str, Any]:
        """Return the next event of that name in a session."""
        end = time.monotonic() + _SECONDS
        place = 0
        while True:
            while place < len(self.events):
                event = self.events[place]
                if event.get("method") == method and event.get("sessionId") == session:
                    del self.events[: place + 1]
                    return event
                place += 1
            self.events.append(self._next(end))

    def _next(self, end: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            if not select.select([self._in], [], [], max(0.0, end - time.monotonic()))[0]:
                raise TimeoutError("chromium does not answer")
            part = os.read(self._in, 1 << 20)
            if not part:
                raise RuntimeError("chromium ended")
            self._buffer += part
        text, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        return message


class Page:
    """A page of a browser.

    Arguments:
        browser: The browser.
        target: Its target, of the protocol.
        session: Its session.
    """

    def __init__(self, browser: Chromium, target: str, session: str) -> None:
        self._browser, self._target, self._session = browser, target, session
        for domain in ("Page", "Runtime"):
            self._send(f"{domain}.enable")

    def _send(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self._browser.send(method, parameters, self._session)

    def screen(self, width: int, height: int, *, dark: bool = False) -> None:
        """Set the size of its screen in CSS pixels, and the reader's colour scheme."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self._send("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._send("Emulation.setEmulatedMedia", features=[scheme])

    def open(self, path: Path, hash_: str = "") -> None:
        """Load a file, and wait until it is there; ``hash_`` is what its address ends with."""
        self._browser.events.clear()
        # From one address to another hash of it a browser loads nothing.
        self._send("Page.navigate", url="about:blank")
        self._browser.wait("Page.loadEventFired", self._session)
        self._send("Page.navigate", url=path.resolve().as_uri() + hash_)
        self._browser.wait("Page.loadEventFired", self._session)

    def ask(self, script: str) -> Any:
        """Return the value of an expression, a promise's when it is there.

        Raises:
            RuntimeError: The script raised an error.
        """
        answer = self._send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(json.dumps(answer["exceptionDetails"])[:2000])
        return answer["result"].get("value")

    def complaints(self) -> list[str]:
        """Return what the console said since the page was opened, and errors that no script caught."""
        self.ask("0")
        messages = []
        for event in self._browser.events:
            if (
                event.get("sessionId") == self._session
                and event["method"].startswith("Runtime.")
                and (event["method"] in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown"))
            ):
                messages.append(json.dumps(event["params"])[:500])
        return messages

    def first_paint(self) -> float:
        """Return after how many milliseconds something was painted first."""
        return float(
            self.ask(
                """new Promise(done => {
                  const look = () => {
                    const [first] = performance.getEntriesByName("first-contentful-paint");
                    if (first) done(first.startTime); else setTimeout(look, 20);
                  };
                  look();
                })"""
            )
        )

    def picture(self, of: str = "") -> bytes:
        """Return its screen as PNG; with a CSS selector, from the top of that element on."""
        if of:
            self.ask(f"document.querySelector({json.dumps(of)}).scrollIntoView(), 0")
        return base64.b64decode(self._send("Page.captureScreenshot", format="png")["data"])

    def close(self) -> None:
        """Close it."""
        self._browser.send("Target.closeTarget", {"targetId": self._target})
