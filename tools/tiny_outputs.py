"""Rebuild the profile `tiny` in a clean clone of HEAD and compare every output with profiles/tiny.sha256.

python tools/tiny_outputs.py                                  # make tiny-outputs
python tools/tiny_outputs.py --cpu EPYC --cpu Haswell-noTSX   # make tiny-emulated: each under qemu-user, an hour
python tools/tiny_outputs.py --write                          # after an intended change of the results
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import click
import yaml

ROOT = Path(__file__).parent.parent
EXPECTED = ROOT / "profiles/tiny.sha256"


@click.command()
@click.option("--write", is_flag=True, help="Write profiles/tiny.sha256 instead of comparing with it.")
@click.option("--cpu", "cpus", multiple=True, help="Run the stages under this CPU model of qemu-x86_64; repeatable.")
def main(write: bool, cpus: tuple[str, ...]) -> None:
    """Rebuild the profile tiny in a clean clone of HEAD and compare its outputs with profiles/tiny.sha256."""
    if cpus and not shutil.which("qemu-x86_64"):
        raise click.ClickException("qemu-x86_64 is not installed: apt-get install qemu-user")
    for cpu in cpus or (None,):
        hashes = rebuild(cpu)
        if write:
            EXPECTED.write_text("".join(f"{hash_}  {path}\n" for path, hash_ in hashes.items()), encoding="utf-8")
            click.echo(f"{EXPECTED.relative_to(ROOT)}: {len(hashes)} outputs")
        else:
            compare(hashes, f"under qemu -cpu {cpu}" if cpu else "here")


def compare(hashes: dict[str, str], where: str) -> None:
    """Print whether all hashes are the expected ones. Raises ClickException with the paths that differ."""
    expected = recorded_hashes()
    differing = sorted(path for path in expected.keys() | hashes.keys() if expected.get(path) != hashes.get(path))
    if differing:
        raise click.ClickException(
            f"{len(differing)} of {len(expected)} outputs of the profile tiny differ {where}: {', '.join(differing)}\n"
            "If the results were meant to change: python tools/tiny_outputs.py --write"
        )
    click.echo(f"all {len(expected)} outputs of the profile tiny are the same {where}")


def rebuild(cpu: str | None) -> dict[str, str]:
    """Run the pipeline in a temporary clone; return the SHA-256 of each output file by its path."""
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "gpt2core"
        run("git", "clone", "--quiet", str(ROOT), str(clone), cwd=ROOT)
        environment = os.environ | {"GPT2CORE_TRACKING": "off", "GPT2CORE_DEVICE": "cpu", "PYTHONPATH": str(clone)}
        run(sys.executable, "-m", "gpt2core", "profile", "tiny", "--force", cwd=clone, env=environment)
        dvc = [sys.executable, "-m", "dvc", "repro", "--force"]
        bin_folder = Path(sys.executable).parent
        if cpu is not None:
            environment["GPT2CORE_PROCESSES"] = "1"  # qemu's fork of several threads may hang
            bin_folder = Path(folder) / "bin"
            bin_folder.mkdir()
            python = bin_folder / "python"
            python.write_text(
                f'#!/bin/sh\nPYTHONPATH="{clone}:{sysconfig.get_path("purelib")}" '
                f'exec qemu-x86_64 -cpu {cpu} "{Path(sys.executable).resolve()}" "$@"\n'
            )
            python.chmod(0o755)
        environment["PATH"] = f"{bin_folder}{os.pathsep}{os.environ['PATH']}"
        run(*dvc, cwd=clone, env=environment)
        return output_hashes(clone)


def recorded_hashes() -> dict[str, str]:
    """Return profiles/tiny.sha256: the SHA-256 of each output file, by its path."""
    lines = EXPECTED.read_text(encoding="utf-8").splitlines()
    return {path: hash_ for hash_, path in (line.split("  ", 1) for line in lines)}


def output_hashes(clone: Path) -> dict[str, str]:
    """Return the SHA-256 of each file that the stages of a reproduced clone wrote, by its path."""
    lock = yaml.safe_load((clone / "dvc.lock").read_text(encoding="utf-8"))
    outs = [clone / out["path"] for stage in lock["stages"].values() for out in stage.get("outs", [])]
    files = sorted(path for out in outs for path in [out, *out.rglob("*")] if path.is_file())
    return {path.relative_to(clone).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def run(*command: str, cwd: Path, env: dict[str, str] | None = None) -> None:
    """Run a command. Raises ClickException with the end of its output if it fails."""
    done = subprocess.run(command, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise click.ClickException(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-3000:]}")


if __name__ == "__main__":
    main()
