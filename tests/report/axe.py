"""What axe, a checker of accessibility, finds in an open page."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from gpt2core import files
from tests.ui.chromium import Tab

ROOT = Path(__file__).parents[2]
MODULES = ROOT / "docs/node_modules"
BARRIERS = """axe.run(document, {runOnly: ['wcag2a', 'wcag2aa']}).then(result => result.violations.map(
    each => each.id + ': ' + each.nodes.map(node => node.target.join(' ')).slice(0, 3).join(', ')))"""


def install() -> Path:
    """Return docs/node_modules, after npm has installed it; skip where npm cannot."""
    with files.lock(ROOT / "build/npm.lock"):  # of several test processes, one installs
        if not (MODULES / "axe-core").exists():
            command = ["npm", "ci", "--prefix", "docs", "--ignore-scripts", "--no-audit", "--no-fund", "--silent"]
            if not shutil.which("npm") or subprocess.run(command, cwd=ROOT, timeout=300, check=False).returncode:
                pytest.skip("npm cannot install the packages of docs/")
    return MODULES


def barriers(page: Tab) -> list[str]:
    """Return the violations of WCAG 2 A and AA, with up to three elements each."""
    page.run((install() / "axe-core/axe.min.js").read_text(encoding="utf-8"))
    return page.run(BARRIERS)
