"""Headless Chromium for tests of pages: no driver and no package, only the browser's debugging pipe (JSON messages
ended by a zero byte).

with Browser() as browser:
    page = browser.open(path_or_url, width=390)
    page.evaluate("document.title"); page.problems; page.screenshot("page.png")
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
EXECUTABLE = next((path for path in map(shutil.which, NAMES) if path), None)
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--no-first-run",
    "--remote-debugging-pipe",
)


class Browser:
    """One browser process."""

    def __init__(self, timeout: float = 60.0) -> None:
        if EXECUTABLE is None:
            raise RuntimeError("no Chromium found")
        self.timeout, self._number, self._rest, self._events = timeout, 0, b"", []
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        there, self._out = os.pipe()
        self._in, back = os.pipe()
        # The browser reads commands from descriptor 3 and answers on 4: a shell moves ours there.
        move = f'exec 8<&{there} 9>&{back}; exec 3<&8 4>&9 8<&- 9>&-; exec "$0" "$@"'
        self._process = subprocess.Popen(
            ["bash", "-c", move, EXECUTABLE, *FLAGS, f"--user-data-dir={self._profile.name}", "about:blank"],
            pass_fds=(there, back),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(there)
        os.close(back)

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.send("Browser.close")
        except (OSError, TimeoutError):
            self._process.kill()
        self._process.wait(self.timeout)
        os.close(self._in)
        os.close(self._out)
        self._profile.cleanup()

    def send(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """One command and its answer; what happens meanwhile is kept in the order of arrival."""
        self._number += 1
        number = self._number
        message = {"id": number, "method": method, "params": parameters} | ({"sessionId": session} if session else {})
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return dict(answer["result"])
            self._events.append(answer)

    def wait_for(self, method: str, session: str) -> None:
        """Until that event has come."""
        while True:
            if any(e.get("method") == method and e.get("sessionId") == session for e in self._events):
                return
            self._events.append(self._receive())

    def open(self, where: Path | str, width: int = 1280, height: int = 900, dark: bool = False) -> Page:
        """A fresh page, loaded."""
        return Page(self, where if isinstance(where, str) else where.resolve().as_uri(), width, height, dark)

    def _receive(self) -> dict[str, Any]:
        end = time.monotonic() + self.timeout
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._in], [], [], max(0.0, end - time.monotonic()))
            chunk = os.read(self._in, 1 << 20) if ready else b""
            if not chunk:
                raise TimeoutError(f"Chromium gave no answer within {self.timeout} s")
            self._rest += chunk
        message, self._rest = self._rest.split(b"\0", 1)
        return dict(json.loads(message))


class Page:
    """One tab of a given size in CSS pixels."""

    def __init__(self, browser: Browser, url: str, width: int, height: int, dark: bool) -> None:
        self.browser, self.url, self.width = browser, url, width
        target = browser.send("Target.createTarget", url="about:blank")["targetId"]
        self._target, self._session = (
            target,
            browser.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"],
        )
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._send(f"{domain}.enable")
        self._set_size(width, height)
        if dark:
            self._send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
        self._send("Page.navigate", url=url)
        browser.wait_for("Page.loadEventFired", self._session)
        self.evaluate("document.fonts.ready.then(() => new Promise(done => setTimeout(done, 50)))")

    @property
    def problems(self) -> list[str]:
        """Errors and warnings of the console, uncaught exceptions, requests that failed or that leave the machine."""
        found = []
        for event in self.browser._events:
            if event.get("sessionId") != self._session:
                continue
            method, parameters = event["method"], event["params"]
            if method == "Runtime.exceptionThrown":
                details = parameters["exceptionDetails"]
                found.append(details.get("exception", {}).get("description") or details["text"])
            elif method == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "warning", "assert"):
                found.append(" ".join(str(a.get("value", a.get("description"))) for a in parameters["args"]))
            elif method == "Log.entryAdded" and parameters["entry"]["level"] in ("error", "warning"):
                found.append(f"{parameters['entry']['text']} {parameters['entry'].get('url', '')}")
            elif method == "Network.requestWillBeSent" and parameters["request"]["url"].startswith("http"):
                found.append(f"asked for {parameters['request']['url']}")
            elif method == "Network.loadingFailed" and not parameters.get("canceled"):
                found.append(f"not loaded: {parameters['errorText']}")
        return found

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression; a promise is awaited."""
        answer = self._send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"].get("exception", {}).get("description", "exception"))
        return answer["result"].get("value")

    def screenshot(self, path: Path | str, top: float = 0, height: float | None = None) -> None:
        """A picture of the page from `top` down, by default of all of it."""
        height = height or self.evaluate("document.documentElement.scrollHeight") - top
        clip = {"x": 0, "y": top, "width": self.width, "height": height, "scale": 1}
        data = self._send("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)["data"]
        Path(path).write_bytes(base64.b64decode(data))

    def press(self, key: str, code: int) -> None:
        """A key, as the keyboard sends it to what has the focus. code: the key's Windows virtual-key code."""
        text = {"text": key} if len(key) == 1 else {}
        for kind in ("keyDown", "keyUp"):
            more = text if kind == "keyDown" else {}
            self._send("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **more)

    def click(self, selector: str) -> None:
        """A click of the mouse in the middle of the first element that a selector finds."""
        middle = (
            "(e => { e.scrollIntoView({block: 'center'}); const r = e.getBoundingClientRect(); "
            "return [r.left + r.width / 2, r.top + r.height / 2]; })"
        )
        x, y = self.evaluate(f"{middle}(document.querySelector({json.dumps(selector)}))")
        for kind in ("mousePressed", "mouseReleased"):
            self._send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def resize(self, width: int, height: int = 900) -> None:
        """Another size, as when a window is made smaller; waits until the page is laid out."""
        self.width = width
        self._set_size(width, height)
        self.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(0))))")

    def _set_size(self, width: int, height: int) -> None:
        self._send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )

    def close(self) -> None:
        """Close the tab."""
        self.browser.send("Target.closeTarget", targetId=self._target)

    def _send(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self.browser.send(method, self._session, **parameters)
