"""A real browser for the tests of pages: headless Chromium, spoken to over a pipe.

The DevTools protocol over file descriptors 3 and 4: JSON messages that end with a zero byte.
"""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest

PATIENCE = 60  # seconds of silence after which the browser counts as hung
PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)


def program_or_skip() -> str:
    """The browser's path; without one the test skips, except in CI, where it fails."""
    found = next((path for name in PROGRAMS if (path := shutil.which(name))), None)
    if found is None:
        reason = f"no browser: none of {', '.join(PROGRAMS)} is installed"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    return found


class Tab:
    """One page in the browser, with what went wrong on it and what it asked the network for."""

    def __init__(self, browser: "Browser") -> None:
        self._browser = browser
        target = browser.send("Target.createTarget", url="about:blank")["targetId"]
        self.session = browser.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.errors: list[str] = []
        self.requests: list[str] = []
        self._loads = 0
        browser.tabs[self.session] = self
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")
        self.resize(1400)

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a DevTools method on this page."""
        return self._browser.send(method, self.session, **parameters)

    def open(self, path: Path, fragment: str = "") -> "Tab":
        """Load a file and wait until its scripts ran."""
        address = path.resolve().as_uri() + (f"#{fragment}" if fragment else "")
        for url in ("about:blank", address):  # a new fragment alone would load nothing
            before = self._loads
            self.send("Page.navigate", url=url)
            while self._loads == before:
                self._browser.receive()
        return self

    def resize(self, width: int, height: int = 900, scheme: str = "light") -> None:
        """Give the page another viewport and colour scheme."""
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page, promises awaited. Raises AssertionError if it throws."""
        done = self.send(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True, userGesture=True
        )
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def press(self, key: str) -> None:
        """Press a key such as `ArrowRight` or `Tab` on the focused element."""
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key)

    def hover(self, x: float, y: float) -> None:
        """Move the mouse to a point of the viewport."""
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def screenshot(self, path: Path) -> None:
        """A picture of the whole page, as wide as its viewport."""
        shot = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def close(self) -> None:
        """Close the page."""
        self.send("Page.close")
        del self._browser.tabs[self.session]

    def notice(self, event: str, said: dict[str, Any]) -> None:
        """Take in an event of the page."""
        if event == "Page.loadEventFired":
            self._loads += 1
        elif event == "Network.requestWillBeSent":
            self.requests.append(said["request"]["url"])
        elif event == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(said["exceptionDetails"]))
        elif event == "Log.entryAdded" and said["entry"]["level"] in ("warning", "error"):
            self.errors.append(said["entry"]["text"])
        elif event == "Runtime.consoleAPICalled" and said["type"] in ("warning", "error", "assert"):
            self.errors.append(json.dumps(said["args"]))


class Browser:
    """A headless Chromium with a profile of its own."""

    def __init__(self, program: str) -> None:
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        theirs_in, ours_out = map(_out_of_the_way, os.pipe())
        ours_in, theirs_out = map(_out_of_the_way, os.pipe())
        command = f'exec "$@" 3</dev/fd/{theirs_in} 4>/dev/fd/{theirs_out}'
        self._process = subprocess.Popen(
            ["sh", "-c", command, "sh", program, *FLAGS, f"--user-data-dir={self._profile.name}"],
            pass_fds=(theirs_in, theirs_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._out, self._in = os.fdopen(ours_out, "wb", buffering=0), os.fdopen(ours_in, "rb", buffering=0)
        self._buffer = b""
        self._sent = 0
        self._answers: dict[int, dict[str, Any]] = {}
        self.tabs: dict[str, Tab] = {}

    def send(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """Call a DevTools method and wait for its result."""
        self._sent += 1
        number = self._sent
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        self._out.write(json.dumps(message).encode() + b"\0")
        while number not in self._answers:
            self.receive()
        answer = self._answers.pop(number)
        assert "error" not in answer, (method, answer["error"])
        return answer["result"]

    def receive(self) -> None:
        """Wait for the next message and take it in."""
        while b"\0" not in self._buffer:
            assert select.select([self._in], [], [], PATIENCE)[0], "the browser is silent"
            read = self._in.read(1 << 20)
            assert read, f"the browser ended with status {self._process.wait()}"
            self._buffer += read
        raw, self._buffer = self._buffer.split(b"\0", 1)
        message = json.loads(raw)
        if "id" in message:
            self._answers[message["id"]] = message
        elif tab := self.tabs.get(message.get("sessionId", "")):
            tab.notice(message["method"], message["params"])

    def close(self) -> None:
        """End the browser and remove its profile."""
        self.send("Browser.close")
        self._process.wait(timeout=20)
        self._out.close()
        self._in.close()
        self._profile.cleanup()


def _out_of_the_way(descriptor: int) -> int:
    # not 3 or 4, which the shell is about to fill
    moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 10)
    os.close(descriptor)
    return moved
