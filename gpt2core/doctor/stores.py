"""Checks of DVC, of MLflow's store, and of the hosts that have the inputs."""

from __future__ import annotations

import contextlib
import os
import socket
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from gpt2core.deadline import within
from gpt2core.doctor import Finding, Level
from gpt2core.errors import UserError, first_line
from gpt2core.params import Params
from gpt2core.redact import redacted
from gpt2core.sources import registry
from gpt2core.sources.registry import Asset
from gpt2core.tracking import store

CONNECT_TIMEOUT_S = 3.0
CHECKPOINTS_TIMEOUT_S = 20.0  # clients of object stores try again a few times


def dvc(root: Path) -> Iterator[Finding]:
    """Check that DVC is set up and its cache can be written."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with contextlib.closing(Repo(str(root))) as repo:
            remote = repo.config["core"].get("remote")
            cache = Path(repo.cache.local.path)
            site_cache = Path(repo.site_cache_dir)
    except (DvcException, OSError) as error:
        yield Finding("problem", "dvc", f"{error}", "dvc init")
        return
    cache.mkdir(parents=True, exist_ok=True)
    if not os.access(cache, os.W_OK):
        yield Finding("problem", "dvc", f"its cache {cache} cannot be written", f"sudo chown -R $USER {cache}")
    else:
        yield Finding("ok", "dvc", f"cache {cache}, {f'remote {remote}' if remote else 'no remote'}")
    if not _is_private(site_cache):
        yield Finding(
            "warning", "dvc", f"others can write to its site cache {site_cache}, from which DVC reads pickles",
            'install -d -m 700 .dvc/tmp/site && dvc config --local core.site_cache_dir "$PWD/.dvc/tmp/site"',
        )  # fmt: skip


def _is_private(folder: Path) -> bool:
    """Return whether the folder, or one that it is in, belongs to this user and can be entered by no one else."""
    return any(
        path.stat().st_uid == os.getuid() and not path.stat().st_mode & 0o077
        for path in (folder, *folder.parents)
        if path.exists()
    )


def mlflow(root: Path) -> Iterator[Finding]:
    """Check that the tracking store can be used."""
    if not store.is_enabled():
        yield Finding("note", "mlflow", "GPT2CORE_TRACKING disables it", "unset GPT2CORE_TRACKING")
        return
    address = store.address(root)
    path = Path(address.removeprefix("sqlite:///"))
    if address.startswith("sqlite:///") and not path.exists() and not path.is_symlink():
        yield Finding("ok", "mlflow", f"{path.name} will be made by the first stage")
        return
    try:
        client, experiment_id = store.open_store(root)
    except Exception as error:  # of MLflow, SQLAlchemy, requests, …: a stage continues after each of them
        what, _, remedy = (str(error) if isinstance(error, UserError) else first_line(error)).partition("; ")
        level: Level = "problem" if address.startswith("sqlite:///") else "warning"
        yield Finding(
            level, "mlflow", f"{what}; stages would continue without it",
            f"{remedy or 'see to the store, or unset MLFLOW_TRACKING_URI'}\n"
            "gpt2core sync-mlflow fills in later what is missing",
        )  # fmt: skip
        return
    if address.startswith("sqlite:///"):
        yield _database(path)
    else:
        client.search_runs([experiment_id], max_results=1)
        yield Finding("ok", "mlflow", f"{redacted(address)} answers")


def _database(path: Path) -> Finding:
    aside = f"mv {path} {path}.damaged; gpt2core sync-mlflow fills a new one from Git and metrics/"
    try:
        with contextlib.closing(store.connect(path)) as database:
            (verdict,) = database.execute("PRAGMA quick_check(1)").fetchone()
            (runs,) = database.execute("SELECT count(*) FROM runs WHERE lifecycle_stage = 'active'").fetchone()
    except sqlite3.Error as error:
        return Finding("problem", "mlflow", f"{path.name} cannot be read ({error})", aside)
    if verdict != "ok":
        return Finding("problem", "mlflow", f"{path.name} is damaged ({verdict})", aside)
    return Finding("ok", "mlflow", f"{path.name}, {runs} runs")


def checkpoints() -> Iterator[Finding]:
    """Check that a file can be written where `GPT2CORE_CHECKPOINTS` says, read, and removed; without it, nothing."""
    from gpt2core.training.object_store import VARIABLE, checkpoint_root
    from gpt2core.training.storage import PROCESS

    if not os.environ.get(VARIABLE, "").strip():
        return
    name, place = f"doctor-{PROCESS}", redacted(os.environ[VARIABLE])

    def write_and_remove() -> None:
        folder = checkpoint_root()
        folder.write(name, name)
        is_same = folder.read(name).decode() == name
        folder.remove(name)
        if not is_same:
            raise OSError(f"{place}: returns another content than was written")

    try:
        within(CHECKPOINTS_TIMEOUT_S, write_and_remove)
    except TimeoutError:
        problem = f"{place} does not answer in {CHECKPOINTS_TIMEOUT_S:g} s"
    except (UserError, OSError) as error:  # a StoreError is an OSError without a file
        problem = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
    else:
        yield Finding("ok", "training", f"checkpoints can be written to {place}")
        return
    remedy = f"see to it, or unset {VARIABLE}, which keeps the checkpoints in .checkpoints/"
    yield Finding("problem", "training", problem, remedy)


def source_names(params: Params) -> list[tuple[registry.Kind, str]]:
    """Return kind and name of each source in the params, apart from the user's own files."""
    corpora = [params.data.corpus] if isinstance(params.data.corpus, str) else params.data.corpus
    names: list[tuple[registry.Kind, str]] = [("corpus", name) for name in corpora]
    names += [("classification", params.data.classification), ("instructions", params.data.instructions)]
    names += [("openai", f"openai-{size}") for size in params.openai.sizes]
    if params.tokenizer.kind == "gpt2":
        names.append(("tokenizer", "gpt2-bpe"))
    return [(kind, name) for kind, name in names if not name.startswith(("own/", "s3://", "hf://"))]


def find(kind: registry.Kind, name: str) -> Asset:
    """Return a source by its name or URL. Raises UserError if there is none."""
    return registry.from_url(name) if name.startswith("https://") else registry.find(kind, name)


def needed(params: Params) -> list[Asset]:
    """Return the public assets that the params need; unknown names are skipped."""
    assets = []
    for kind, name in source_names(params):
        with contextlib.suppress(UserError):
            assets.append(find(kind, name))
    return [asset for asset in assets if asset.origin == "public"]


def sources_of(params: Params) -> Iterator[Finding]:
    """Check that the mirror, or else each host, has the inputs that the params name."""
    for kind, name in source_names(params):
        try:
            find(kind, name)
        except UserError as error:
            yield Finding("problem", "sources", str(error), "name one of these in params.yaml")
    needed_files = {f"{asset.name}/{file.name}": file for asset in needed(params) for file in asset.files}
    mirror = os.environ.get("GPT2CORE_MIRROR")
    if not needed_files:
        yield Finding("ok", "sources", "the params need nothing from the network")
        return
    if mirror and "://" not in mirror:
        needed_files = {
            name: file for name, file in needed_files.items() if not _is_whole(Path(mirror, name), file.size_bytes)
        }
        if not needed_files:
            yield Finding("ok", "sources", f"the mirror {mirror} has all that the params need")
            return
        lacks = f"the mirror {mirror} lacks {len(needed_files)} file(s): {', '.join([*needed_files][:3])}"
        yield Finding("note", "sources", lacks, "make mirror fills one; until then the network is asked")
        mirror = None
    urls = {mirror} if mirror else {url for file in needed_files.values() for url in file.urls[:1]}
    try:
        places = sorted({_host_and_port(url) for url in urls})
    except ValueError as error:
        yield Finding("problem", "sources", f"GPT2CORE_MIRROR is no usable address ({error})", "correct it")
        return
    for host, port in places:
        try:
            socket.create_connection((host, port), CONNECT_TIMEOUT_S).close()
            yield Finding("ok", "sources", f"{host} answers")
        except OSError as error:
            yield Finding(
                "warning", "sources", f"{host} cannot be reached ({error.strerror or error})",
                "set GPT2CORE_MIRROR to a folder or URL that has the files, or take data: embedded",
            )  # fmt: skip


def _is_whole(path: Path, size_bytes: int | None) -> bool:
    return path.is_file() and size_bytes in (None, path.stat().st_size)


def _host_and_port(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    return parts.hostname or url, parts.port or (80 if parts.scheme == "http" else 443)
