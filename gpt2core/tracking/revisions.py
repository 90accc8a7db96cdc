"""The states that a project has: of the workspace, of commits, and of DVC's experiments."""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from gpt2core.errors import UserError
from gpt2core.tracking.commit_states import CommitStates, object_reader
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
    states = CommitStates(root)
    found = (experiment(root, states, ref) for ref in experiments(root))
    revisions = (_workspace(root), _commit(root, states, "HEAD"), *found)
    unique: dict[tuple[str, str], Revision] = {}
    for revision in revisions:
        if revision is not None:
            unique.setdefault((revision.key, revision.state.fingerprint), revision)
    return list(unique.values())


def named(root: Path, name: str) -> Revision:
    """Return an experiment or, if there is none of this name, a Git revision."""
    states = CommitStates(root)
    refs = [ref for ref in experiments(root) if ref.name == name]
    revision = experiment(root, states, refs[-1]) if refs else _commit(root, states, name)
    if revision is None and not refs and git("rev-parse", "--verify", f"{name}^{{commit}}", cwd=root) is None:
        names = ", ".join(ref.name for ref in experiments(root)) or "none"
        raise UserError(f"{name}: neither an experiment nor a Git revision; experiments: {names}")
    if revision is None:
        raise UserError(f"{name}: has no results: no dvc.lock, or none of its metrics belong to its params")
    return revision


def _workspace(root: Path) -> Revision | None:
    commit = git_revision(root) or ""
    read = of_directory(root)
    state = read_state(read)
    if state is None or not state.metrics:
        return None
    name, now_ms = f"workspace {commit[:7]}".strip(), time.time_ns() // 1_000_000
    return Revision(name, state, read, commit, now_ms, is_workspace=True)


def _commit(root: Path, states: CommitStates, name: str) -> Revision | None:
    """Return a Git revision; None if there is none of this name, or it has no results."""
    shown = git("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}", cwd=root)
    if not shown:
        return None
    seconds = git("show", "--no-patch", "--format=%ct", shown, cwd=root) or "0"
    return _of_commit(root, states, shown, f"commit {shown[:7]}", 1000 * int(seconds))


def experiment(root: Path, states: CommitStates, ref: ExperimentRef) -> Revision | None:
    """Return an experiment; None if it has no results."""
    revision = _of_commit(root, states, ref.commit, ref.name, 1000 * ref.at_s)
    if revision is None:
        return None
    before, stages = states.get(ref.baseline), revision.state.stages
    ran = frozenset(stages if before is None else (s for s in stages if stages[s] != before.stages.get(s)))
    return revision._replace(key=experiment_key(ref.name, ref.baseline), baseline=ref.baseline, ran=ran)


def _of_commit(root: Path, states: CommitStates, commit: str, name: str, at_ms: int) -> Revision | None:
    state = states.get(commit)
    read = functools.partial(object_reader(root).read, commit)
    return Revision(name, state, read, commit, at_ms) if state and state.metrics else None


class ExperimentRef(NamedTuple):
    """One of DVC's experiments: its name, the commits of its baseline and of itself, and the time of the latter."""

    name: str
    baseline: str
    commit: str
    at_s: int


def experiments(root: Path) -> list[ExperimentRef]:
    """Return DVC's experiments, the oldest first."""
    form = "%(refname) %(objectname) %(committerdate:unix)"
    lines = git("for-each-ref", "--sort=creatordate", f"--format={form}", "refs/exps", cwd=root)
    ref = re.compile(r"refs/exps/([0-9a-f]{2})/([0-9a-f]{38})/(\S+) ([0-9a-f]{40}) (\d+)")
    matches = filter(None, map(ref.fullmatch, (lines or "").splitlines()))
    return [ExperimentRef(match[3], match[1] + match[2], match[4], int(match[5])) for match in matches]
