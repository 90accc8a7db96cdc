"""What several tests share."""

from __future__ import annotations

import gc
import os
import random
from pathlib import Path

import pytest
from hypothesis import settings

from gpt2core.log import log_to_stderr

# Of several processes (pytest-xdist) each has its share of the cores. Set before a test imports torch, which reads it.
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    n_threads = max(1, (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))
    os.environ.setdefault("OMP_NUM_THREADS", str(n_threads))

# The collector looks at a heap of a million objects, most of them modules: less often, a test run takes 8% less time.
gc.set_threshold(20_000, 20, 20)

# Servers of tests are on this machine, whatever proxy the way out takes.
os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1,localhost"

ROOT = Path(__file__).parent.parent
# llama-cpp-python builds for ten minutes; some machines have no registry of npm.
CANNOT_BE_INSTALLED = ("real OpenAI weights", "CUDA", "llama-cpp-python", "npm")
SEED = int(os.environ.get("GPT2CORE_TEST_SEED", "0"))  # another one shows a test that holds for some draws only


# Hypothesis has a generator of its own, and keeps what failed for the next run.
settings.register_profile("same", derandomize=True, database=None, deadline=None)
settings.load_profile("same")


def draw_anew() -> None:
    """Starts the generators that a test draws from when it makes none of its own."""
    import numpy as np
    import torch

    random.seed(SEED)
    np.random.seed(SEED)
    torch.manual_seed(SEED)


@pytest.hookimpl(tryfirst=True)
def pytest_collectstart() -> None:
    """What a file draws while it is imported does not depend on the files before it."""
    draw_anew()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """A test draws the same numbers alone, after others and in any process; so do its fixtures."""
    draw_anew()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the stages' tests, which take longest, so that all processes end at about the same time."""
    items.sort(key=lambda item: item.path.parent.name != "stages")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """With GPT2CORE_NO_SKIPS, as in CI, a skipped test fails the run, unless what it wants cannot be had there."""
    if not os.environ.get("GPT2CORE_NO_SKIPS"):
        return
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None:  # one of several processes: the first one has the reports of all
        return
    for report in reporter.stats.get("skipped", []):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if not any(allowed in reason for allowed in CANNOT_BE_INSTALLED):
            reporter.write_line(f"ERROR: skipped, which GPT2CORE_NO_SKIPS forbids: {report.nodeid}: {reason}", red=True)
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(scope="session")
def mirror() -> Path:
    """The folder of real public inputs: GPT2CORE_MIRROR."""
    folder = Path(os.environ.get("GPT2CORE_MIRROR") or ROOT.parent / "shared" / "mirror")
    if not folder.is_dir():
        pytest.skip("no mirror of the real inputs: set GPT2CORE_MIRROR=path/to/mirror")
    return folder


@pytest.fixture(autouse=True)
def _tracking_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the tests of tracking track."""
    monkeypatch.setenv("GPT2CORE_TRACKING", "off")


@pytest.fixture(autouse=True)
def shown_messages() -> None:
    """Messages of the package appear on standard error, as in a stage."""
    log_to_stderr()
