"""The states that a project has: of the workspace, of commits, and of DVC's experiments."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from gpt2core.errors import UserError
from gpt2core.tracking.pipeline_run import experiment_key, git, git_revision
from gpt2core.tracking.state import Read, State, of_directory, read_state


class Revision(NamedTuple):
    """A state, and where it is from.

    read: reads its files. revision: its commit. key: the tag of its parent run, and ran: the stages that ran for it, if
    they are known. is_workspace: its models are in models/.
    """

    name: str
    state: State
    read: Read
    revision: str
    at_ms: int
    key: str = ""
    baseline: str = ""
    ran: frozenset[str] | None = None
    is_workspace: bool = False


def select(root: Path, names: Iterable[str] = ()) -> list[Revision]:
    """Return the experiments or Git revisions with these names; without names, all that have results.

    All are the workspace, HEAD if its results are others, and every experiment.

    Raises:
        UserError: a name is neither, or has no results.
    """
    if chosen := [named(root, name) for name in names]:
        return chosen
    revisions = (_workspace(root), _commit(root, "HEAD"), *(experiment(root, *ref) for ref in experiments(root)))
    unique: dict[tuple[str, str], Revision] = {}
    for revision in revisions:
        if revision is not None:
            unique.setdefault((revision.key, revision.state.fingerprint), revision)
    return list(unique.values())


def named(root: Path, name: str) -> Revision:
    """Return an experiment or, if there is none of this name, a Git revision."""
    refs = [ref for ref in experiments(root) if ref[0] == name]
    revision = experiment(root, *refs[-1]) if refs else _commit(root, name)
    if revision is None and not refs and git("rev-parse", "--verify", f"{name}^{{commit}}", cwd=root) is None:
        names = ", ".join(ref[0] for ref in experiments(root)) or "none"
        raise UserError(f"{name}: neither an experiment nor a Git revision; experiments: {names}")
    if revision is None:
        raise UserError(f"{name}: has no results: no dvc.lock, or none of its metrics belong to its params")
    return revision


def _workspace(root: Path) -> Revision | None:
    commit = git_revision(root) or ""
    revision = _with_results(f"workspace {commit[:7]}".strip(), of_directory(root), commit, time.time_ns() // 1_000_000)
    return revision and revision._replace(is_workspace=True)


def _commit(root: Path, revision: str) -> Revision | None:
    commit = git("rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}", cwd=root)
    return _of_commit(root, commit, f"commit {commit[:7]}") if commit else None


def experiment(root: Path, name: str, baseline: str, commit: str) -> Revision | None:
    """Return an experiment of `experiments`; None if it has no results."""
    revision = _of_commit(root, commit, name)
    if revision is None:
        return None
    before = read_state(_reader(root, baseline))
    stages = revision.state.stages
    ran = frozenset(stages if before is None else (s for s in stages if stages[s] != before.stages.get(s)))
    return revision._replace(key=experiment_key(name, baseline), baseline=baseline, ran=ran)


def _of_commit(root: Path, commit: str, name: str) -> Revision | None:
    seconds = git("show", "--no-patch", "--format=%ct", commit, cwd=root) or "0"
    return _with_results(name, _reader(root, commit), commit, 1000 * int(seconds))


def _with_results(name: str, read: Read, commit: str, at_ms: int) -> Revision | None:
    state = read_state(read)
    return Revision(name, state, read, commit, at_ms) if state and state.metrics else None


def _reader(root: Path, commit: str) -> Read:
    """Return a function that reads the files of a commit."""

    def read(path: str) -> bytes | None:
        content = git("show", f"{commit}:./{path}", cwd=root, strip=False)
        return None if content is None else content.encode()

    return read


def experiments(root: Path) -> list[tuple[str, str, str]]:
    """Return name, baseline, and commit of each of DVC's experiments, the oldest first."""
    lines = git("for-each-ref", "--sort=creatordate", "--format=%(refname) %(objectname)", "refs/exps", cwd=root)
    ref = re.compile(r"refs/exps/([0-9a-f]{2})/([0-9a-f]{38})/(\S+) ([0-9a-f]{40})")
    matches = filter(None, map(ref.fullmatch, (lines or "").splitlines()))
    return [(match[3], match[1] + match[2], match[4]) for match in matches]
