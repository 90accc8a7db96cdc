"""The states that a project knows: of the workspace, of commits, and of DVC's experiments."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import NamedTuple

from gpt2core.errors import UserError
from gpt2core.tracking.pipeline_run import experiment_key, git, git_revision
from gpt2core.tracking.state import Read, State, of_directory, read_state


class Revision(NamedTuple):
    """A state to be shown. key: the tag of its parent run, ran: the stages that ran for it; where they are known.
    is_here: it is the workspace's, whose models lie in models/."""

    name: str
    state: State
    read: Read
    revision: str
    at_ms: int
    key: str = ""
    baseline: str = ""
    ran: frozenset[str] | None = None
    is_here: bool = False


def all_of(root: Path) -> list[Revision]:
    """The workspace, HEAD where that shows something else, and every experiment; those that have results."""
    found = [_workspace(root), _commit(root, "HEAD"), *(experiment(root, *ref) for ref in experiments(root))]
    seen, kept = set(), []
    for target in found:
        if target is not None and (target.key, target.state.fingerprint) not in seen:
            seen.add((target.key, target.state.fingerprint))
            kept.append(target)
    return kept


def named(root: Path, name: str) -> Revision:
    """An experiment, else a revision."""
    refs = [ref for ref in experiments(root) if ref[0] == name]
    target = experiment(root, *refs[-1]) if refs else _commit(root, name)
    if target is None and not refs and git("rev-parse", "--verify", f"{name}^{{commit}}", cwd=root) is None:
        there = ", ".join(ref[0] for ref in experiments(root)) or "none"
        raise UserError(f"{name}: neither an experiment nor a Git revision; experiments: {there}")
    if target is None:
        raise UserError(f"{name}: has no results: no dvc.lock, or none of its metrics belong to its params")
    return target


def _workspace(root: Path) -> Revision | None:
    read = of_directory(root)
    state = read_state(read)
    if state is None or not state.metrics:
        return None
    revision = git_revision(root) or ""
    now_ms = time.time_ns() // 1_000_000
    return Revision(f"workspace {revision[:7]}".strip(), state, read, revision, now_ms, is_here=True)


def _commit(root: Path, revision: str) -> Revision | None:
    commit = git("rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}", cwd=root)
    return _of_commit(root, commit, f"commit {commit[:7]}") if commit else None


def experiment(root: Path, name: str, baseline: str, commit: str) -> Revision | None:
    """An experiment of `experiments`; None if it has no results."""
    target = _of_commit(root, commit, name)
    if target is None:
        return None
    before = read_state(_reader(root, baseline))
    stages = target.state.stages
    ran = frozenset(stages if before is None else (s for s in stages if stages[s] != before.stages.get(s)))
    return target._replace(key=experiment_key(name, baseline), baseline=baseline, ran=ran)


def _of_commit(root: Path, commit: str, name: str) -> Revision | None:
    read = _reader(root, commit)
    state = read_state(read)
    if state is None or not state.metrics:
        return None
    seconds = git("show", "--no-patch", "--format=%ct", commit, cwd=root) or "0"
    return Revision(name, state, read, commit, 1000 * int(seconds))


def _reader(root: Path, commit: str) -> Read:
    """Reads the files of a commit."""

    def read(path: str) -> bytes | None:
        content = git("show", f"{commit}:./{path}", cwd=root, strip=False)
        return None if content is None else content.encode()

    return read


def experiments(root: Path) -> list[tuple[str, str, str]]:
    """Name, baseline and commit of each of DVC's experiments, the oldest first."""
    listed = git("for-each-ref", "--sort=creatordate", "--format=%(refname) %(objectname)", "refs/exps", cwd=root)
    found = []
    for line in (listed or "").splitlines():
        if match := re.fullmatch(r"refs/exps/([0-9a-f]{2})/([0-9a-f]{38})/(\S+) ([0-9a-f]{40})", line):
            found.append((match[3], match[1] + match[2], match[4]))
    return found
