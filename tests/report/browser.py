"""A page in a real browser, without the network: its DOM after its script has run."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--no-proxy-server",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--virtual-time-budget=10000",
)  # fmt: skip


def executable() -> str:
    """The installed browser."""
    browser = next((found for name in NAMES if (found := shutil.which(name))), None)
    if browser is None:
        pytest.skip("no browser: install chromium")
    return browser


def dom(page: Path, script: str = "", width: int = 1200) -> str:
    """The DOM of a page after `script`, which is appended to a copy of it."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        copy = Path(folder) / "page.html"
        text = page.read_text(encoding="utf-8")
        # An error of the page's own script shows as an attribute.
        watch = "<script>onerror = (m) => document.documentElement.setAttribute('data-error', m)</script>"
        text = text.replace("<title>", f"{watch}<title>", 1).replace("</body>", f"<script>{script}</script></body>", 1)
        copy.write_text(text, encoding="utf-8")
        command = [
            executable(),
            *FLAGS,
            f"--user-data-dir={folder}/profile",
            f"--window-size={width},900",
            "--dump-dom",
        ]
        done = subprocess.run([*command, copy.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    assert "data-error" not in done.stdout.split(">", 2)[1], done.stdout[:300]
    return done.stdout
