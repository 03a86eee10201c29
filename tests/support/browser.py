"""Chromium for tests of pages: the installed browser, driven by Playwright.

with Browser() as browser:
    page = browser.open(path_or_url, width=390)
    page.evaluate("document.title"); page.problems; page.screenshot("page.png")
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
EXECUTABLE = next((path for path in map(shutil.which, NAMES) if path), None)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]


class Browser:
    """One browser process."""

    def __init__(self, timeout: float = 60.0) -> None:
        from playwright.sync_api import sync_playwright

        if EXECUTABLE is None:
            raise RuntimeError("no Chromium found")
        self.timeout = timeout
        self._driver = sync_playwright().start()
        self._browser = self._driver.chromium.launch(executable_path=EXECUTABLE, args=FLAGS, timeout=1e3 * timeout)

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self._browser.close()
        self._driver.stop()

    def open(self, where: Path | str, width: int = 1280, height: int = 900, dark: bool = False) -> Page:
        """A fresh page, loaded."""
        context = self._browser.new_context(
            viewport={"width": width, "height": height},
            is_mobile=width < 600,
            color_scheme="dark" if dark else "light",
        )
        context.set_default_timeout(1e3 * self.timeout)
        return Page(context.new_page(), where if isinstance(where, str) else where.resolve().as_uri())


class Page:
    """One tab of a given size in CSS pixels.

    problems: errors and warnings of the console, uncaught exceptions, requests that failed or that leave the machine.
    """

    def __init__(self, page: Any, url: str) -> None:
        self._page = page
        self.problems: list[str] = []
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("console", self._said)
        page.on("request", self._asked)
        page.on("requestfailed", lambda request: self.problems.append(f"not loaded: {request.url} {request.failure}"))
        page.goto(url)
        self.evaluate("document.fonts.ready.then(() => new Promise(done => setTimeout(done, 50)))")

    def _said(self, message: Any) -> None:
        if message.type in ("error", "warning", "assert"):
            self.problems.append(message.text)

    def _asked(self, request: Any) -> None:
        if request.url.startswith("http"):
            self.problems.append(f"asked for {request.url}")

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression; a promise is awaited."""
        return self._page.evaluate(expression)

    def screenshot(self, path: Path | str, top: float = 0, height: float | None = None) -> None:
        """A picture of the page from `top` down, by default of all of it."""
        height = height or self.evaluate("document.documentElement.scrollHeight") - top
        width = self._page.viewport_size["width"]
        clip = {"x": 0, "y": top, "width": width, "height": height}
        self._page.screenshot(path=path, full_page=True, clip=clip)

    def press(self, key: str) -> None:
        """A key, as the keyboard sends it to what has the focus."""
        self._page.keyboard.press(key)

    def click(self, selector: str) -> None:
        """A click of the mouse in the middle of the first element that a selector finds."""
        self._page.locator(selector).first.click()

    def resize(self, width: int, height: int = 900) -> None:
        """Another size, as when a window is made smaller; waits until the page is laid out."""
        self._page.set_viewport_size({"width": width, "height": height})
        self.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(0))))")

    def close(self) -> None:
        """Close the tab."""
        self._page.context.close()
