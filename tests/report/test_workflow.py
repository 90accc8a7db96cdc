"""The workflow that comments on pull requests: its permissions, and its script with a `gh` that records its calls."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from gpt2core.report.markdown import NOTHING

WORKFLOWS = Path(__file__).parents[2] / ".github/workflows"
TEXT = (WORKFLOWS / "report.yml").read_text()
JOBS = yaml.safe_load(TEXT)["jobs"]
GH = """#!{python}
import json, os, pathlib, sys
body = pathlib.Path("comment.md").read_text()
with open("calls.jsonl", "a") as calls:
    calls.write(json.dumps([sys.argv[1:], body]) + "\\n")
if "--paginate" in sys.argv:
    print(os.environ["IDS"], end="")
    sys.exit(int(os.environ["LIST_FAILS"]))
"""


def run_script(folder: Path, markdown: str, ids: str = "", list_fails: bool = False) -> tuple[int, list[Any]]:
    """Run the script of the job `comment`; return its exit status and the calls of gh: arguments, comment.md."""
    (folder / "gh").write_text(GH.format(python=sys.executable))
    (folder / "gh").chmod(0o755)
    (step,) = JOBS["comment"]["steps"]
    assert step["shell"] == "bash"
    environment = os.environ | {
        "PATH": f"{folder}:{os.environ['PATH']}", "COMMENTS": "repos/o/r/issues/7/comments", "IDS": ids,
        "COMMENT": "repos/o/r/issues/comments", "MARKDOWN": markdown, "LIST_FAILS": str(int(list_fails)),
    }  # fmt: skip
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
    completed = subprocess.run(command, cwd=folder, env=environment, capture_output=True)
    return completed.returncode, [json.loads(line) for line in (folder / "calls.jsonl").read_text().splitlines()]


def test_the_first_comparison_is_posted(tmp_path: Path) -> None:
    text = "### Changed results\n\n`$HOME` $(touch pwned) \\n \"'\n"
    status, (listing, post) = run_script(tmp_path, text)
    assert status == 0 and not (tmp_path / "pwned").exists()
    assert listing[0][:3] == ["api", "--paginate", "repos/o/r/issues/7/comments?per_page=100"]
    assert 'startswith("<!-- gpt2core report -->")' in listing[0][-1] and "github-actions[bot]" in listing[0][-1]
    fields = ["--field", "body=@comment.md", "--silent"]
    assert post[0] == ["api", "--method", "POST", "repos/o/r/issues/7/comments", *fields]
    assert post[1] == f"<!-- gpt2core report -->\n{text}\n"


def test_a_later_one_replaces_it(tmp_path: Path) -> None:
    status, (_, patch) = run_script(tmp_path, f"{NOTHING} compared with abc.\n", ids="41\n42\n")
    assert status == 0 and patch[0][:4] == ["api", "--method", "PATCH", "repos/o/r/issues/comments/41"]


def test_nothing_is_posted_if_nothing_changed(tmp_path: Path) -> None:
    status, calls = run_script(tmp_path, f"{NOTHING} compared with abc.\n")
    assert status == 0 and len(calls) == 1


def test_no_second_comment_is_posted_if_the_first_cannot_be_looked_up(tmp_path: Path) -> None:
    status, calls = run_script(tmp_path, "### Changed results\n", list_fails=True)
    assert status != 0 and len(calls) == 1


def test_only_the_job_that_runs_no_code_of_the_pull_request_can_write() -> None:
    workflow = yaml.safe_load(TEXT)
    assert workflow[True] == "pull_request" and workflow["permissions"] == {"contents": "read"}  # `on` is True
    assert "permissions" not in JOBS["compare"]
    comment = JOBS["comment"]
    assert comment["permissions"] == {"pull-requests": "write"} and not any("uses" in s for s in comment["steps"])
    assert comment["if"] == "github.event.pull_request.head.repo.full_name == github.repository"
    assert not any("${{" in step.get("run", "") for job in JOBS.values() for step in job["steps"])


def test_actions_are_the_ones_that_the_other_workflow_pins() -> None:
    uses = re.compile(r"uses: (\S+@[0-9a-f]{40}\b.*)")
    assert set(uses.findall(TEXT)) == set(uses.findall((WORKFLOWS / "ci.yml").read_text()))
    assert TEXT.count("uses:") == len(uses.findall(TEXT))


@pytest.mark.parametrize("markdown", ["### Changed results\n\nfirst\n\nlast\n"])
def test_the_comparison_reaches_the_summary_and_the_other_job(tmp_path: Path, markdown: str) -> None:
    (tmp_path / ".venv/bin").mkdir(parents=True)
    command = tmp_path / ".venv/bin/gpt2core"
    command.write_text(f"#!/bin/bash\nprintf '%s ' \"$@\" > arguments\nprintf '%s' '{markdown}' > report.md\n")
    command.chmod(0o755)
    for arguments in (["init", "-q"], *[["commit", "-q", "--allow-empty", "-m", name] for name in ("a", "b")]):
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.invalid"]
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True)
    (step,) = (step for step in JOBS["compare"]["steps"] if step.get("id") == "compare")
    files = {name: str(tmp_path / name) for name in ("GITHUB_STEP_SUMMARY", "GITHUB_OUTPUT")}
    subprocess.run(["bash", "-e", "-c", step["run"]], cwd=tmp_path, env=os.environ | files, check=True)
    assert Path(files["GITHUB_STEP_SUMMARY"]).read_text() == markdown
    first, *lines, last = Path(files["GITHUB_OUTPUT"]).read_text().splitlines()
    assert first == f"markdown<<{last}" and len(last) == 32 and "\n".join(lines) + "\n" == markdown
    base = subprocess.check_output(["git", "rev-parse", "HEAD^1"], cwd=tmp_path, text=True).strip()
    assert (tmp_path / "arguments").read_text() == f"report --markdown --base {base} --out report.md "


@pytest.mark.parametrize("path", sorted(WORKFLOWS.glob("*.yml")), ids=lambda path: path.name)
def test_the_code_of_a_pull_request_finds_no_token(path: Path) -> None:
    """By default, actions/checkout leaves the job's token in .git/config."""
    jobs = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"]
    steps = [step for job in jobs.values() for step in job["steps"] if "actions/checkout@" in step.get("uses", "")]
    assert steps and all(step["with"]["persist-credentials"] is False for step in steps)
