"""Write the hashes of every file of each locked package into the lock files: `python tools/locks.py` (needs uv).

A lock names exact versions and what pip may download for them, on any machine and Python. The versions are those that
the file has now: to change one, edit it here, and run this. PyTorch is not among them (requirements-torch.txt).
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
LOCKS = ("requirements.lock", "requirements-peers.lock", "requirements-docs.lock")
PINNED = re.compile(r"^[A-Za-z0-9._-]+(?:\[[\w,]+\])?==[^\s\\;]+(?: ; [^\\\n]+)?", re.MULTILINE)


def main() -> None:
    """Rewrite each lock file: its comment, then versions and hashes."""
    for name in LOCKS:
        path = ROOT / name
        text = path.read_text(encoding="utf-8")
        comment = "".join(line for line in text.splitlines(keepends=True) if line.startswith("#"))
        pins = "\n".join(sorted(PINNED.findall(text), key=str.lower))
        command = ["uv", "pip", "compile", "--no-deps", "--generate-hashes", "--no-header", "--no-annotate", "--quiet"]
        done = subprocess.run(
            [*command, "--universal", "--python-version", "3.11", "-"], input=pins, capture_output=True, text=True
        )
        if done.returncode:
            sys.exit(f"{name}: {done.stderr.strip()}")
        path.write_text(comment + done.stdout, encoding="utf-8")
        print(f"{name}: {len(PINNED.findall(done.stdout))} packages")


if __name__ == "__main__":
    main()
