"""Which stages of a project are outdated, as `dvc status` finds them."""

from __future__ import annotations

import contextlib
from pathlib import Path

from gpt2core.errors import first_line
from gpt2core.log import logger

MAX_NAMES = 3


def outdated_stages(root: Path) -> dict[str, str]:
    """Return why a stage's results are not those of the project's present files, by the name of each such stage.

    Without a DVC project, or while another process runs the pipeline, the dict is empty.
    """
    if not (root / "dvc.yaml").exists():
        return {}
    import networkx
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with contextlib.closing(Repo(str(root))) as repo:
            changes = {_name(address): entries for address, entries in repo.status().items()}
            graph = repo.index.graph  # edges go from a stage to the stages that it depends on
            reasons = {name: ", ".join(_changed(entries)) for name, entries in changes.items()}
            for stage in graph:
                upstream = [_name(each.addressing) for each in networkx.descendants(graph, stage)]
                if changed := [name for name in upstream if name in changes]:
                    reasons.setdefault(_name(stage.addressing), f"depends on {changed[0]}")
    except DvcException as error:
        logger.warning(f"the report does not show which stages are outdated ({first_line(error)})")
        return {}
    return reasons


def _name(address: str) -> str:
    """Return the name of a stage; outside the project's folder, DVC puts the path of dvc.yaml in front of it."""
    return address.rpartition(":")[2]


def _changed(entries: list[str | dict[str, dict[str, str]]]) -> list[str]:
    """Return short descriptions of a stage's entries in `dvc status`."""
    found = []
    for entry in entries:
        if isinstance(entry, str):  # such as "changed command"
            found.append(entry)
            continue
        for kind, paths in entry.items():
            more = f" and {len(paths) - MAX_NAMES} more" if len(paths) > MAX_NAMES else ""
            found.append(
                f"{kind.replace('deps', 'inputs').replace('outs', 'outputs')}: {', '.join([*paths][:MAX_NAMES])}{more}"
            )
    return found
