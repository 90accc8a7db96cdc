"""Install PyTorch from requirements-torch.txt, and say first which build it is and how much it downloads.

python tools/install_torch.py                                    # from pip's own index
GPT2CORE_TORCH_INDEX=URL python tools/install_torch.py           # from an index of PyTorch's builds, such as the CPU's

On Linux, PyPI's build for x86-64 brings CUDA with it, gigabytes that a machine without an NVIDIA GPU cannot use.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

FILE = Path(__file__).parent.parent / "requirements-torch.txt"
INDEX = "GPT2CORE_TORCH_INDEX"
TIMEOUT_S = 20


def main() -> None:
    """Resolve, report, and install."""
    index = os.environ.get(INDEX, "").strip()
    arguments = ["-r", str(FILE), *(["--index-url", index] if index else [])]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        run("install", "--dry-run", "--quiet", "--report", str(report), *arguments)
        packages = json.loads(report.read_text(encoding="utf-8"))["install"]
    if not packages:
        return  # it is there
    print(describe(packages, has_nvidia=shutil.which("nvidia-smi") is not None), flush=True)
    run("install", "--quiet", *arguments)


def run(*arguments: str) -> None:
    """Run pip, and end with its exit code if it fails."""
    done = subprocess.run([sys.executable, "-m", "pip", *arguments])
    if done.returncode:
        sys.exit(done.returncode)


def describe(packages: list[dict[str, Any]], *, has_nvidia: bool) -> str:
    """Return a line about the packages of pip's report: the build, its size, and what would be smaller."""
    versions = {package["metadata"]["name"].lower(): package["metadata"]["version"] for package in packages}
    with_cuda = any(name.startswith("nvidia") for name in versions)
    sizes = [size_bytes(package["download_info"]["url"]) for package in packages]
    known = sum(size for size in sizes if size is not None)
    size = f"{known / 1e9:.1f} GB" if known >= 1e9 else f"{known / 1e6:.0f} MB"
    about = "" if None not in sizes else " at least"
    build = "with CUDA" if with_cuda else "without CUDA"
    line = f"torch {versions.get('torch', 'is installed')}, {build}: {len(packages)} packages,{about} {size}"
    if with_cuda and not has_nvidia:
        line += (
            f"\nThis machine has no NVIDIA GPU. A build without CUDA has about 0.2 GB: set {INDEX} to the address of\n"
            "PyTorch's index of CPU builds (see Get Started on PyTorch's site), and run this again."
        )
    return line


def size_bytes(url: str) -> int | None:
    """Return the size of a package by its address, or None if the server does not say it."""
    parts = urlsplit(url)
    if parts.scheme == "file":
        return Path(unquote(parts.path)).stat().st_size
    with contextlib.suppress(OSError, ValueError):
        request = urllib.request.Request(url, method="HEAD")
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            length = answer.headers.get("Content-Length")
            return int(length) if length else None
    return None


if __name__ == "__main__":
    main()
