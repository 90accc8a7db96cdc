"""Training checkpoints of a stage, in `$DVC_ROOT/.checkpoints/<stage>-<key>/`.

The folder is outside every DVC output, since DVC deletes outputs before a run. The key is a hash of everything that
decides the bytes of the result: a checkpoint is resumed only if all of it matches. A lock next to the folder keeps it
for one process.

A checkpoint is one safetensors file, `<training>/<step>.<SHA-256 of the file>.safetensors`, with everything that is no
tensor as JSON in its header. It is written under another name and renamed when it is complete. The two newest are kept:
if the checksum shows that the newest is damaged, the one before is used.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gpt2core import config, files, numerics, runtime, stage_code
from gpt2core.log import logger

KEEP_LAST = 2  # checkpoints per training
SUFFIX = ".safetensors"
SAVING = "saving.tmp"
MAX_AGE_DAYS = 14.0  # of an unfinished training
MIN_AGE_DAYS = 2.0  # younger ones are removed to save space only if their training is finished
MAX_FINISHED_AGE_DAYS = 1.0  # of a finished training: DVC may have been killed before it saved the outputs
MAX_BYTES = 20 << 30  # of all checkpoints of a project; one of GPT-2 124M with its optimizer has 1.5 GB
FOLDER_NAME = re.compile(r".+-[0-9a-f]{16}")
STATE_NAME = re.compile(rf"\d{{10}}\.[0-9a-f]{{64}}{re.escape(SUFFIX)}")


@dataclass(frozen=True)
class Checkpoint:
    """Everything that a training needs to continue after `step` steps; `extra_state` has values of JSON."""

    step: int
    tensors: dict[str, Tensor]
    extra_state: dict[str, Any]
    saved_s: float  # of the file: seconds since 1970


class CheckpointManager:
    """The checkpoints of one training, in a folder that no other process writes to."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._warned = False

    def save(self, step: int, tensors: Mapping[str, Tensor], extra_state: Mapping[str, Any]) -> bool:
        """Write a checkpoint, then remove all but the newest two; return whether it was written.

        A full disk or another error of writing is only a warning: the training and its earlier checkpoints are worth
        more than this one.
        """
        header = {"state": json.dumps({"step": step, "notes": extra_state}, allow_nan=False)}
        temporary = self.folder / SAVING
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            safetensors.torch.save_file(dict(tensors), temporary, header)
            # No fsync: if a power cut damages the newest file, its checksum differs, and the one before it has been on
            # the disk for long.
            temporary.replace(self.folder / f"{step:010d}.{files.sha256(temporary)}{SUFFIX}")
        except (OSError, SafetensorError) as error:
            if not self._warned:  # once, not at every try
                logger.warning(
                    f"step {step}: the checkpoint was not saved ({error}); the training continues, free some space"
                )
            self._warned = True
            return False
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
        self._warned = False
        self.keep(KEEP_LAST)
        return True

    def newest(self) -> Checkpoint | None:
        """Return the newest checkpoint that is complete; damaged ones are reported and removed."""
        for path in self._paths():
            step, checksum = path.name.removesuffix(SUFFIX).split(".")
            try:
                if files.sha256(path) == checksum:
                    with safe_open(path, "pt") as file:
                        kept = json.loads(file.metadata()["state"])
                        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                    return Checkpoint(kept["step"], tensors, kept["notes"], path.stat().st_mtime)
                reason = "its checksum differs"
            except OSError as error:
                reason = str(error)
            logger.warning(f"the checkpoint of step {int(step)} is damaged ({reason}); it is not used")
            with contextlib.suppress(OSError):
                path.unlink()
        return None

    def _paths(self) -> list[Path]:
        """Return the files of checkpoints, the newest first."""
        return sorted((path for path in self.folder.glob("*") if STATE_NAME.fullmatch(path.name)), reverse=True)

    def keep(self, number: int) -> None:
        """Remove all but the newest `number` checkpoints."""
        for path in self._paths()[number:]:
            with contextlib.suppress(OSError):
                path.unlink()


class StageCheckpoints:
    """The folder of a stage's checkpoints, one subfolder per training; without a folder, nothing is saved."""

    def __init__(self, folder: Path | None = None):
        self.folder = folder

    def training(self, name: str) -> CheckpointManager | None:
        """Return the checkpoints of the training `name`."""
        return CheckpointManager(self.folder / name) if self.folder else None

    @property
    def run_file(self) -> Path | None:
        """Where tracking writes its run's id, so that a resumed stage continues the same run."""
        return self.folder / "mlflow.json" if self.folder else None


NO_CHECKPOINTS = StageCheckpoints()


@contextlib.contextmanager
def stage_checkpoints(stage: str, params: Mapping[str, Any], inputs: Iterable[Path]) -> Iterator[StageCheckpoints]:
    """Lock the checkpoints of a stage for this process until the `with` block ends.

    While another process has them (a worker of DVC's queue, or a stage whose `dvc` was killed), this one waits, and
    then continues from that one's last checkpoint. When the block ends without an error, the checkpoints are marked as
    finished: the last one is kept for a day, in case `dvc` is killed before it has saved the stage's outputs.

    The params are those that the stage reads, and the inputs are its dependencies except code: files and folders.
    """
    if os.environ.get("GPT2CORE_RESUME", "").lower() in ("off", "0", "false", "no"):
        yield StageCheckpoints()
        return
    known = fingerprint(stage, params, inputs)
    checkpoints = config.checkpoints_dir()
    folder = checkpoints / f"{stage}-{digest(known)}"
    try:
        lock = files.lock(_lock_path(folder))
        _acquire(lock, checkpoints, folder)
        _prepare(folder, known)
    except OSError as error:
        logger.warning(
            f"{checkpoints}: no checkpoints can be saved ({error.strerror or error}); a kill loses the whole training"
        )
        yield StageCheckpoints()
        return
    try:
        yield StageCheckpoints(folder)
        for training in {path.parent for path in _checkpoints_in(folder)}:
            CheckpointManager(training).keep(1)
        with contextlib.suppress(OSError):
            (folder / "finished").touch()
    finally:
        if not _checkpoints_in(folder):  # the stage failed at its input, or the disk is full
            shutil.rmtree(folder, ignore_errors=True)
            _lock_path(folder).unlink(missing_ok=True)
        lock.release()


def fingerprint(stage: str, params: Mapping[str, Any], inputs: Iterable[Path]) -> dict[str, Any]:
    """Return everything that decides the bytes of what a stage trains, as values of JSON.

    Threads and CPU are not part of it if every CPU gives the same bytes. Dtypes are params.
    """
    ignored = runtime.OF_THE_CPU if numerics.is_portable() else ()
    return {
        "stage": stage,
        "params": dict(params),
        "inputs": {
            path.as_posix(): files.sha256(path)
            for top in inputs
            for path in sorted([top, *top.rglob("*")])
            if path.is_file()  # the stage itself reports missing inputs
        },
        "code": {path.as_posix(): files.sha256(stage_code.ROOT / path) for path in stage_code.stage_files(stage)},
        "environment": {name: fact for name, fact in runtime.environment().items() if name not in ignored},
        "world_size": os.environ.get("WORLD_SIZE", "1"),
    }


def digest(known: Mapping[str, Any]) -> str:
    """Return a hash of values of JSON, 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:16]


def _acquire(lock: FileLock, checkpoints: Path, folder: Path) -> None:
    """Acquire the folder's lock, after removing old checkpoints of others."""
    with files.lock(checkpoints / "states.lock"):
        prune(checkpoints, keep=folder)
        with contextlib.suppress(Timeout):
            lock.acquire(timeout=0)
    if not lock.is_locked:
        holder = _read_json(folder / "holder.json").get("pid", "unknown")
        logger.info(
            f"process {holder} is already running this training; waiting until it ends "
            f"(to end it, after it has saved: kill {holder})"
        )
        lock.acquire()


def _prepare(folder: Path, known: Mapping[str, Any]) -> None:
    """Prepare the folder for this process, which has its lock."""
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.rglob(SAVING):  # of a process that was killed while it saved
        leftover.unlink()
    (folder / "finished").unlink(missing_ok=True)
    if not _checkpoints_in(folder):
        _report_differences(folder, known)
    files.write_json(folder / "key.json", known)
    files.write_json(folder / "environment.json", runtime.environment())
    files.write_json(folder / "holder.json", {"pid": os.getpid()})


def _checkpoints_in(folder: Path) -> list[Path]:
    """Return the files of all checkpoints of a stage; unlike `Path.glob`, this works while another process writes."""
    return [Path(name) for name in glob.glob(f"{glob.escape(str(folder))}/*/*{SUFFIX}")]


def _lock_path(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")


def prune(checkpoints: Path, keep: Path, max_bytes: int = MAX_BYTES) -> None:
    """Remove folders that are too old, then finished ones and the oldest until the rest is below `max_bytes`.

    The folder `keep` and those that a process has locked stay, but count. A training that was stopped recently is worth
    more than the space that it takes.
    """
    found = []
    for folder in checkpoints.iterdir():
        if folder.is_dir() and FOLDER_NAME.fullmatch(folder.name):
            with contextlib.suppress(FileNotFoundError):  # a process is saving there
                stats = [path.stat() for path in folder.rglob("*") if path.is_file()]
                age_days = (time.time() - max((s.st_mtime for s in stats), default=0.0)) / 86400
                found.append(((folder / "finished").exists(), age_days, sum(s.st_size for s in stats), folder))
    total_bytes = sum(n_bytes for _, _, n_bytes, _ in found)
    for finished, age_days, n_bytes, folder in sorted(found, reverse=True):
        too_old = age_days > (MAX_FINISHED_AGE_DAYS if finished else MAX_AGE_DAYS)
        too_large = total_bytes > max_bytes and (finished or age_days > MIN_AGE_DAYS)
        if folder != keep and (too_old or too_large) and _remove(folder):
            total_bytes -= n_bytes


def _remove(folder: Path) -> bool:
    """Remove a folder of checkpoints and its lock, unless a process has locked it; return whether it was removed."""
    lock = files.lock(_lock_path(folder), timeout_s=0)
    try:
        with lock:
            shutil.rmtree(folder)
            _lock_path(folder).unlink()  # a process that waits for it notices this, and creates a new one
    except (Timeout, OSError):
        return False
    return True


def _report_differences(folder: Path, known: Mapping[str, Any]) -> None:
    """Report why the training starts at step 0, if checkpoints of the same params exist."""
    for path in folder.parent.glob(f"{known['stage']}-*/key.json"):
        other, theirs = path.parent, _read_json(path)
        if theirs.get("params") == known["params"] and _checkpoints_in(other) and not (other / "finished").exists():
            names = sorted(_differing(theirs, known))
            listed = ", ".join(names[:4]) + (", …" if len(names) > 4 else "")
            logger.info(f"starts at step 0: the checkpoints in .checkpoints/{other.name} differ in {listed}")
            return


def _differing(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> set[str]:
    """Return the names of the files, modules, libraries, and other entries that differ between two fingerprints."""
    names = set()
    for key in ours.keys() | theirs.keys():
        one, other = theirs.get(key), ours.get(key)
        if isinstance(one, dict) and isinstance(other, dict):
            names |= _differing(one, other)
        elif one != other:
            names.add(key)
    return names


def _read_json(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file; an empty dict if it is missing or damaged."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}
