"""A pytest plugin (-p bench.gpu_check.counts --counts FILE) that keeps the outcomes of all tests so far in a JSON file,
so that a run that is cut short tells what it found.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

_EVERY = 2.0  # seconds between two writes
_FAILURES = 100  # that are kept


class _Counts:
    def __init__(self, file: Path) -> None:
        self.file = file
        self.outcomes: Counter[str] = Counter()
        self.failures: list[dict[str, str]] = []
        self.written = 0.0

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when != "call" and report.outcome == "passed":
            return
        self.outcomes[report.outcome] += 1
        if report.outcome == "failed" and len(self.failures) < _FAILURES:
            self.failures.append({"test": report.nodeid, "message": _message(report)})
        if time.monotonic() - self.written > _EVERY:
            self.write()

    def pytest_sessionfinish(self) -> None:
        self.write()

    def write(self) -> None:
        self.written = time.monotonic()
        self.file.write_text(json.dumps({"outcomes": self.outcomes, "failures": self.failures}, indent=1) + "\n")


def _message(report: Any) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    return (crash.message if crash is not None else str(report.longrepr))[:600]


def pytest_addoption(parser: Any) -> None:
    parser.addoption("--counts", default=None, help="JSON file that keeps the outcomes so far")


def pytest_configure(config: Any) -> None:
    file = config.getoption("--counts")
    if file and not hasattr(config, "workerinput"):  # reports of xdist's workers come to the controller
        config.pluginmanager.register(_Counts(Path(file)))
