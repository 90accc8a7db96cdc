"""Run the tests of examples/course on several versions of `gpt.py`, one after the other in this process.

python run.py FOLDER...     # each folder has a gpt.py and tests; prints the outcome of each test as JSON
"""

from __future__ import annotations

import json
import sys

import pytest


class Outcomes:
    """Collects the outcome of each test, with the error if it failed."""

    def __init__(self) -> None:
        self.tests: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or not report.passed:
            self.tests[report.nodeid] = report.longreprtext if report.failed else report.outcome

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.tests[report.nodeid] = report.longreprtext


def main(folders: list[str]) -> None:
    results = {}
    for folder in folders:
        for name in [name for name in sys.modules if name in ("gpt", "conftest") or name.startswith("test_")]:
            del sys.modules[name]
        outcomes = Outcomes()
        path = list(sys.path)
        options = ["-q", "--no-header", "-p", "no:cacheprovider", "--rootdir", folder]
        pytest.main([folder, *options], plugins=[outcomes])
        sys.path[:] = path
        results[folder] = outcomes.tests
    print("\n" + json.dumps(results))


if __name__ == "__main__":
    main(sys.argv[1:])
