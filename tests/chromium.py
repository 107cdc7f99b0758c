"""A headless Chromium for tests, driven by the DevTools protocol over a pipe, without a package for it."""

from __future__ import annotations

import fcntl
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

PROGRAM = next((p for p in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if p), None)
_FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-extensions",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--remote-debugging-pipe",
]  # fmt: skip


class Chromium:
    """One browser with one page; ``errors`` and ``requests`` hold what the page said and asked for."""

    def __init__(self, width: int = 1400, height: int = 900) -> None:
        assert PROGRAM is not None
        self.errors: list[str] = []
        self.requests: list[str] = []
        self._folder = tempfile.TemporaryDirectory()
        self._seen, self._n, self._session, self._rest = [], 0, None, b""
        read, self._write = os.pipe()
        self._read, write = os.pipe()
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (read, write)]  # 3 and 4 must be free in the child
        self._process = subprocess.Popen(
            [PROGRAM, *_FLAGS, f"--user-data-dir={self._folder.name}", "about:blank"], pass_fds=(3, 4),
            preexec_fn=lambda: (os.dup2(ends[0], 3), os.dup2(ends[1], 4)),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        for end in (read, write, *ends):
            os.close(end)
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        self.resize(width, height)

    def __enter__(self) -> Chromium:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(20)
        os.close(self._read)
        os.close(self._write)
        self._folder.cleanup()

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and wait for its answer."""
        self._n += 1
        message = {"id": self._n, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._n:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]

    def _next(self, timeout: float = 60) -> dict[str, Any]:
        while b"\0" not in self._rest:
            if not select.select([self._read], [], [], timeout)[0]:
                raise TimeoutError("Chromium does not answer")
            found = os.read(self._read, 1 << 20)
            if not found:
                raise RuntimeError("Chromium has ended")
            self._rest += found
        message, _, self._rest = self._rest.partition(b"\0")
        event = json.loads(message)
        params = event.get("params", {})
        if event.get("method") == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif event.get("method") == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(params["exceptionDetails"]))
        elif event.get("method") == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(params["entry"]["text"])
        elif event.get("method") == "Runtime.consoleAPICalled" and params["type"] == "error":
            self.errors.append(json.dumps(params["args"]))
        return event

    def open(self, path: Path, ready: str, seconds: float = 30) -> float:
        """Open a file, wait until the expression ``ready`` holds, and return the seconds that it took."""
        start = time.perf_counter()
        self.call("Page.navigate", url=path.resolve().as_uri())
        self.wait(ready, seconds)
        return time.perf_counter() - start

    def wait(self, condition: str, seconds: float = 10) -> None:
        """Wait until an expression holds."""
        end = time.perf_counter() + seconds
        while not self(condition):
            if time.perf_counter() > end:
                raise TimeoutError(f"{condition} does not hold; errors: {self.errors}")
            time.sleep(0.02)

    def __call__(self, expression: str) -> Any:
        """Evaluate an expression in the page."""
        out = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in out:
            raise RuntimeError(out["exceptionDetails"])
        return out["result"].get("value")

    def resize(self, width: int, height: int) -> None:
        """Give the page another size; narrow ones are a phone's."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1,
                  mobile=width < 500)  # fmt: skip

    def place(self, selector: str, right: float = 0.5, down: float = 0.5) -> tuple[float, float]:
        """Return a point of an element that was scrolled into view."""
        box = self(
            f"(e => (e.scrollIntoView({{block: 'center'}}), e.getBoundingClientRect().toJSON()))"
            f"(document.querySelector({json.dumps(selector)}))"
        )
        return box["x"] + right * box["width"], box["y"] + down * box["height"]

    def mouse(self, kind: str, x: float, y: float, **how: Any) -> None:
        """Send an event of the mouse: mouseMoved, mousePressed, mouseReleased, mouseWheel."""
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **how)

    def click(self, x: float, y: float) -> None:
        """Click at a point."""
        self.mouse("mouseMoved", x, y)
        for kind in ("mousePressed", "mouseReleased"):
            self.mouse(kind, x, y, button="left", clickCount=1)
