"""Training checkpoints of a stage, in `<stage>-<key>/` of the folder that `object_store.checkpoint_root` returns.

The folder is outside every DVC output, since DVC deletes outputs before a run. The key is a hash of everything that
decides the bytes of the result: a checkpoint is resumed only if all of it matches. One process at a time has the
folder; see `storage`.

A checkpoint is one safetensors file, `<training>/<step>.<SHA-256 of the file>.safetensors`, with everything that is no
tensor as JSON in its header. With `sharding: full`, it is a manifest, `<step>.<SHA-256>.json`, and a safetensors file
per process, since no process has all tensors. (torch's distributed checkpoints are no alternative: their metadata is a
pickle.) The manifest is written last, so a checkpoint is complete or does not exist. The two newest are kept: if a
checksum shows that the newest is damaged, the one before is used.
"""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import json
import os
import platform
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gpt2core import environment, files, numerics, runtime, stage_code
from gpt2core.errors import UserError
from gpt2core.log import logger
from gpt2core.training import distributed
from gpt2core.training.object_store import VARIABLE, checkpoint_root, open_storage
from gpt2core.training.storage import SAVING, Entry, Storage, StoreError

T = TypeVar("T")

KEEP_LAST = 2  # checkpoints per training
SUFFIX = ".safetensors"
MANIFEST = ".json"
MAX_AGE_DAYS = 14.0  # of an unfinished training
MIN_AGE_DAYS = 2.0  # younger ones are removed to save space only if their training is finished
MAX_FINISHED_AGE_DAYS = 1.0  # of a finished training: DVC may have been killed before it saved the outputs
MAX_BYTES = 20 << 30  # of all checkpoints of a project; one of GPT-2 124M with its optimizer has 1.5 GB
FOLDER_NAME = re.compile(r".+-[0-9a-f]{16}")
FILE_NAME = re.compile(r"\d{10}\.[0-9a-f]{64}(?P<shard>\.\d+-of-\d+)?\.(safetensors|json)")
OF_THE_MACHINE = (*runtime.OF_THE_CPU, "device")  # entries of `runtime.environment`
RUN_FILE = "mlflow.json"


@dataclass(frozen=True)
class Checkpoint:
    """Everything that a training needs to continue after `step` steps; `extra_state` has values of JSON."""

    step: int
    tensors: dict[str, Tensor]
    extra_state: dict[str, Any]
    saved_s: float  # seconds since 1970
    sharded: frozenset[str] = frozenset()  # the names of the tensors of which this process has its part


class CheckpointManager:
    """The checkpoints of one training, in a folder that no other training writes to.

    Each process of a training has one (`join`), and calls `save` and `newest` together with the others.
    """

    def __init__(self, folder: Storage):
        self.folder = folder
        self._warned = False

    @classmethod
    def join(cls, checkpoints: CheckpointManager | None) -> CheckpointManager | None:
        """Return the checkpoints that the first process has; None if it has none. All processes must call this."""
        location = distributed.broadcast_object(checkpoints.folder.location if checkpoints else None)
        return checkpoints or (cls(open_storage(*location)) if location else None)

    def save(self, step: int, tensors: Mapping[str, Tensor], extra_state: Mapping[str, Any]) -> bool:
        """Write a checkpoint, then remove all but the newest two; return whether it was written.

        If some tensors are sharded, each process writes its parts. Otherwise, the first process writes all.

        A full disk, a store that cannot be reached, or another error of writing is only a warning: the training and its
        earlier checkpoints are worth more than this one.

        Raises:
            UserError: another process has taken over the folder.
        """
        state = {"step": step, "notes": extra_state}
        layout = distributed.layout(tensors)
        header = {} if layout else {"state": json.dumps(state, allow_nan=False)}
        suffix = f".{distributed.rank()}-of-{distributed.world_size()}{SUFFIX}" if layout else SUFFIX

        def write() -> dict[str, str | int] | None:
            if distributed.rank() and not layout:
                return None
            parts = {name: distributed.local_part(tensor).contiguous() for name, tensor in tensors.items()}
            return self._store(step, suffix, lambda path: safetensors.torch.save_file(parts, path, header))

        _, error = _in_each(self.folder.check)
        if not error:
            shards, error = _in_each(write)
        if layout and not error:
            _, error = _in_each(lambda: self._store_manifest({**state, "shards": shards, "layout": layout}))
        if error and not self._warned:  # once, not at every try
            logger.warning(
                f"step {step}: the checkpoint was not saved ({error}); the training continues, and tries again later; "
                "if the disk is full, free some space"
            )
        self._warned = bool(error)
        if not error and not distributed.rank():
            self.keep(KEEP_LAST)
        return not error

    def _store(self, step: int, suffix: str, write: Callable[[Path], None]) -> dict[str, str | int]:
        """Store what `write` writes; return the file's name, SHA-256, and size."""
        temporary = self.folder.temporary
        try:
            write(temporary)
            checksum, n_bytes = files.sha256(temporary), temporary.stat().st_size
            name = f"{step:010d}.{checksum}{suffix}"
            self.folder.put(temporary, name)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
        return {"name": name, "sha256": checksum, "bytes": n_bytes}

    def _store_manifest(self, manifest: Mapping[str, Any]) -> None:
        if not distributed.rank():
            self.folder.check()  # the shards may have taken long
            self._store(manifest["step"], MANIFEST, lambda path: files.write_json(path, manifest))

    def newest(self) -> Checkpoint | None:
        """Return the newest checkpoint that is complete; damaged ones are reported and removed.

        Raises:
            UserError: another number of processes has written it, or its store cannot be reached.
        """
        found = {} if distributed.rank() else self.folder.entries()
        names = sorted(filter(_is_checkpoint, found), reverse=True)
        for name, saved_s in distributed.broadcast_object([(name, found[name].modified_s) for name in names]):
            checkpoints: list[Checkpoint] = []
            _, error = _in_each(lambda: checkpoints.append(self._read(name, saved_s)))  # noqa: B023
            if not error:
                return checkpoints[0]
            logger.warning(f"the checkpoint of step {_step(name)} is damaged ({error}); it is not used")
            if not distributed.rank():
                with contextlib.suppress(OSError):
                    self.folder.remove(name)
        return None

    def _read(self, name: str, saved_s: float) -> Checkpoint:
        try:
            if name.endswith(SUFFIX):
                tensors, header = self._tensors(name)
                state, layout = json.loads(header["state"]), {}
            else:
                with self._verified(name) as path:
                    state = files.read_json(path)
                shards, n_processes, layout = state["shards"], distributed.world_size(), state["layout"]
                if len(shards) != n_processes:
                    raise UserError(
                        f"{self.folder}: the checkpoint of step {_step(name)} has the shards of {len(shards)} "
                        f"processes, and {n_processes} cannot continue it; start {len(shards)}"
                    )
                tensors, _ = self._tensors(shards[distributed.rank()]["name"])
        except StoreError as error:  # perhaps the checkpoint is good
            raise UserError(f"{error}; the checkpoint of step {_step(name)} cannot be read, run again later") from None
        return Checkpoint(state["step"], tensors, state["notes"], saved_s, frozenset(layout))

    def _tensors(self, name: str) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Return the tensors of a file, and its header."""
        with self._verified(name) as path, safe_open(path, "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118

    @contextlib.contextmanager
    def _verified(self, name: str) -> Iterator[Path]:
        """Provide a file whose checksum is right. Raises OSError if it is not."""
        with self.folder.fetch(name) as path:
            if files.sha256(path) != name.split(".")[1]:
                raise OSError("its checksum differs")
            yield path

    def keep(self, number: int) -> None:
        """Remove all but the newest `number` checkpoints, and shards without a manifest that are older than these."""
        with contextlib.suppress(OSError):
            names = list(filter(FILE_NAME.fullmatch, self.folder.entries()))
            kept = sorted(filter(_is_checkpoint, names), reverse=True)[:number]
            for name in sorted(names, key=_is_checkpoint, reverse=True):  # manifests before their shards
                if kept and _step(name) < _step(kept[-1]):
                    self.folder.remove(name)


def _in_each(action: Callable[[], T]) -> tuple[list[T], str]:
    """Return what `action` returned in each process, values of JSON, and the first error of reading or writing."""
    value, error = None, ""
    try:
        value = action()
    except (OSError, SafetensorError) as problem:
        error = str(problem) or type(problem).__name__
    outcomes = [distributed.broadcast_object([value, error], source) for source in range(distributed.world_size())]
    return [value for value, _ in outcomes], next((error for _, error in outcomes if error), "")


def _is_checkpoint(name: str) -> bool:
    """Return whether a file is a checkpoint, as opposed to a shard of one."""
    match = FILE_NAME.fullmatch(name)
    return match is not None and not match["shard"]


def _step(name: str) -> int:
    return int(name.split(".")[0])


class StageCheckpoints:
    """The folder of a stage's checkpoints, one subfolder per training; without a folder, nothing is saved."""

    def __init__(self, folder: Storage | None = None):
        self.folder = folder

    @classmethod
    def at(cls, location: Sequence[str]) -> StageCheckpoints:
        """Return the checkpoints at a `location`; this process, or the one that started it, has reserved them."""
        return _reserved.get(tuple(location)) or cls(open_storage(*location) if location else None)

    @property
    def location(self) -> list[str]:
        """Where the folder is, for another process; empty without a folder."""
        return list(self.folder.location) if self.folder else []

    def training(self, name: str) -> CheckpointManager | None:
        """Return the checkpoints of the training `name`."""
        if self.folder is None:
            return None
        if self.run_file and self.run_file.exists():  # another machine continues this run
            with contextlib.suppress(OSError):
                self.folder.write(RUN_FILE, files.read_text(self.run_file))
        return CheckpointManager(self.folder.child(name))

    @property
    def run_file(self) -> Path | None:
        """Where tracking writes its run's id, so that a resumed stage continues the same run."""
        return self.folder.scratch / RUN_FILE if self.folder else None


NO_CHECKPOINTS = StageCheckpoints()
_reserved: dict[tuple[str, ...], StageCheckpoints] = {}  # by this process


@contextlib.contextmanager
def stage_checkpoints(stage: str, params: Mapping[str, Any], inputs: Iterable[Path]) -> Iterator[StageCheckpoints]:
    """Reserve the checkpoints of a stage for this process until the `with` block ends.

    While another process has them (a worker of DVC's queue, or a stage whose `dvc` was killed), this one waits, and
    then continues from that one's last checkpoint. When the block ends without an error, the checkpoints are marked as
    finished: the last one is kept for a day, in case `dvc` is killed before it has saved the stage's outputs.

    The params are those that the stage reads, and the inputs are its dependencies except code: files and folders.

    Raises:
        UserError: the folder that `GPT2CORE_CHECKPOINTS` names cannot be used. A stage that trained without it could
            repeat days of work that are there.
    """
    if environment.is_off("GPT2CORE_RESUME"):
        yield StageCheckpoints()
        return
    known = fingerprint(stage, params, inputs)
    root = checkpoint_root()
    folder = root.child(f"{stage}-{digest(_without_machine(known) if root.is_shared else known)}")
    try:
        _reserve(root, folder)
        _prepare(root, folder, known)
    except OSError as error:
        problem = error.strerror or str(error).removeprefix(f"{folder}: ").removeprefix(f"{root}: ")
        reason = f"{root}: no checkpoints can be saved ({problem})"
        if root.is_shared:
            raise UserError(f"{reason}; check {VARIABLE}, or unset it to save them in .checkpoints") from None
        logger.warning(f"{reason}; a kill loses the whole training")
        yield StageCheckpoints()
        return
    checkpoints = StageCheckpoints(folder)
    _reserved[tuple(checkpoints.location)] = checkpoints
    try:
        yield checkpoints
        _finish(folder)
    finally:
        _reserved.pop(tuple(checkpoints.location), None)
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            stack.callback(folder.release)
            if not (folder.is_lost or _checkpoints_in(folder)):
                folder.delete()  # the stage failed at its input, or the disk is full


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


def _without_machine(known: Mapping[str, Any]) -> dict[str, Any]:
    """Return a fingerprint without the facts about a machine, which change the last digits of a result."""
    facts = {name: fact for name, fact in known["environment"].items() if name not in OF_THE_MACHINE}
    return {**known, "environment": facts}


def _reserve(root: Storage, folder: Storage) -> None:
    """Reserve the folder, after removing old checkpoints of others."""
    with root.guard():
        prune(root, folder)
        is_reserved = folder.acquire(wait=False)
    if not is_reserved:
        holder = folder.read_json("holder.json")
        pid, host = holder.get("pid", "unknown"), holder.get("host", platform.node())
        where = "" if host == platform.node() else f" on {host}"
        logger.info(
            f"process {pid}{where} is already running this training; waiting until it ends{folder.expiry} "
            f"(to end it, after it has saved: kill {pid})"
        )
        folder.acquire(wait=True)


def _prepare(root: Storage, folder: Storage, known: Mapping[str, Any]) -> None:
    """Prepare the folder for this process, which has reserved it."""
    for leftover in folder.scratch.rglob(f"*{SAVING}"):  # of a process that was killed while it saved
        leftover.unlink()
    folder.remove("finished")
    if not _checkpoints_in(folder):
        _report_differences(root, known)
    elif (earlier := folder.read_json("key.json")) and (names := sorted(_differing(earlier, known))):
        logger.warning(
            f"the checkpoints in {folder} are of another machine, with a different {', '.join(names)}; this one "
            "continues, but the last digits of the results may differ"
        )
    folder.write_json("key.json", known)
    folder.write_json("environment.json", runtime.environment())
    folder.write_json("holder.json", {"pid": os.getpid(), "host": platform.node()})
    with contextlib.suppress(FileNotFoundError):
        files.write_text(folder.scratch / RUN_FILE, folder.read(RUN_FILE).decode())


def _finish(folder: Storage) -> None:
    """Mark the checkpoints as finished, and keep the last one of each training."""
    if folder.is_lost:
        return
    with contextlib.suppress(OSError):
        for training in {name.rpartition("/")[0] for name in _checkpoints_in(folder)}:
            CheckpointManager(folder.child(training)).keep(1)
        folder.write_json("finished", {})
        if not (folder.scratch / RUN_FILE).exists():  # the run is complete
            folder.remove(RUN_FILE)


def _checkpoints_in(folder: Storage) -> list[str]:
    """Return the names of all checkpoints of a stage."""
    return [name for name in folder.entries() if "/" in name and _is_checkpoint(name.rpartition("/")[2])]


def prune(root: Storage, keep: Storage, max_bytes: float = MAX_BYTES) -> None:
    """Remove folders that are too old, then finished ones and the oldest until the rest is below `max_bytes`.

    The folder `keep` and those that a process has reserved stay, but count. A training that was stopped recently is
    worth more than the space that it takes. In a folder that others share, only the age counts.
    """
    folders: dict[str, dict[str, Entry]] = defaultdict(dict)
    for path, entry in root.entries().items():
        name, _, rest = path.partition("/")
        if rest and FOLDER_NAME.fullmatch(name):
            folders[name][rest] = entry
    found = []
    for name, inside in folders.items():
        age_days = (time.time() - max(entry.modified_s for entry in inside.values())) / 86400
        found.append(("finished" in inside, age_days, sum(entry.n_bytes for entry in inside.values()), name))
    total_bytes = sum(n_bytes for _, _, n_bytes, _ in found)
    for finished, age_days, n_bytes, name in sorted(found, reverse=True):
        folder = root.child(name)
        too_old = age_days > (MAX_FINISHED_AGE_DAYS if finished else MAX_AGE_DAYS)
        too_large = not root.is_shared and total_bytes > max_bytes and (finished or age_days > MIN_AGE_DAYS)
        if folder.location != keep.location and (too_old or too_large) and _remove(folder):
            total_bytes -= n_bytes


def _remove(folder: Storage) -> bool:
    """Remove a folder of checkpoints and its lock, unless a process has reserved it; return whether it was removed."""
    with contextlib.suppress(OSError):
        if folder.acquire(wait=False):
            with contextlib.ExitStack() as stack:
                stack.callback(folder.release)
                folder.delete()
            return True
    return False


def _report_differences(root: Storage, known: Mapping[str, Any]) -> None:
    """Report why the training starts at step 0, if checkpoints of the same params exist."""
    paths = root.entries()
    for key in fnmatch.filter(paths, f"{known['stage']}-*/key.json"):
        other = root.child(key.partition("/")[0])
        theirs = other.read_json("key.json")
        has_same_params = _differing(theirs.get("params", {}), known["params"]) <= {"launcher"}
        if has_same_params and _checkpoints_in(other) and key.replace("key.json", "finished") not in paths:
            names = sorted(_differing(theirs, known))
            listed = ", ".join(names[:4]) + (", …" if len(names) > 4 else "")
            logger.info(f"starts at step 0: the checkpoints in {other} differ in {listed}")
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
