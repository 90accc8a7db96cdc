"""`gpt2core report --markdown`: tables and charts against values computed here, hostile values, and GitHub's limit."""

from __future__ import annotations

import csv
import doctest
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from gpt2core.cli import cli
from gpt2core.errors import UserError
from gpt2core.report import markdown, mermaid
from gpt2core.report.markdown import Base, Change, Comparison, compare, comparison_markdown
from gpt2core.report.plot_changes import Changes, Curve

GITHUB_LIMIT = 65_536
HOSTILE = (
    "a | b` @org/team <img src=x onerror=alert(1)> #1 https://x.example ![x](//x.example) $a$ \\| :tada:\n```\n# x"
)
OLD_METRICS = {"test_accuracy": 0.9, "test_f1": 0.8, "test_ece": 0.25, "n": 1000, "judge": "chrf", "same": 1, "gone": 2}
NEW_METRICS = {"test_accuracy": 0.925, "test_f1": 0.8, "test_ece": 0.2, "n": 1500, "judge": HOSTILE, "same": 1}
OLD_PARAMS = {"seed": 1, "train": {"lr": 0.001, "note": "plain", "same": "x"}}
NEW_PARAMS = {"seed": 2, "train": {"lr": 0.001, "note": HOSTILE, "same": "x", "layers": ["a", "b"]}}
PLOTS = {
    "metrics": ["metrics/headline/finetune_classify.json"],  # as in this project; the other file has all results
    "plots": [
        {"Loss": {
            "template": "linear", "x": "epoch", "y": {"loss.csv": ["train_loss", "val_loss"]},
            "y_label": f"nats {HOSTILE}",
        }},
        {"Half": {"x": "epoch", "y": {"half.csv": ["moved", "still"]}}},
        {"Labels": {"template": "confusion", "x": "actual", "y": {"labels.csv": "predicted"}}},
        {"Unchanged": {"x": "epoch", "y": {"same.csv": "loss"}}},
        "picture.svg",
    ],
}  # fmt: skip
OLD_LOSS = "epoch,train_loss,val_loss\n0,4,3\n2,2,3\n4,1,3\n"
NEW_LOSS = "epoch,train_loss,val_loss\n0,5,3\n4,1,3\n8,0.5,3\n"


class Rendered(HTMLParser):
    """The tables of a page, its tags, and the text outside code."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.tags: list[str] = []
        self.prose = ""
        self._code = 0
        self._in_cell = False
        self.feed(MarkdownIt("commonmark", {"html": True}).enable("table").render(text))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._code += tag == "code"
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("th", "td"):
            self.tables[-1][-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag: str) -> None:
        self._code -= tag == "code"
        self._in_cell &= tag not in ("th", "td")

    def handle_data(self, data: str) -> None:
        if self._in_cell:
            self.tables[-1][-1][-1] += data
        if not self._code:
            self.prose += data


def git(root: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.invalid")
    completed = subprocess.run(["git", *identity, *arguments], cwd=root, check=True, capture_output=True, text=True)
    return completed.stdout.strip()


def write(root: Path, metrics: object, params: object, loss: str, labels: str, picture: str) -> None:
    (root / "metrics/headline").mkdir(parents=True, exist_ok=True)
    (root / "metrics/finetune_classify.json").write_text(json.dumps(metrics))
    headline = {"accuracy": metrics["test_accuracy"]}
    (root / "metrics/headline/finetune_classify.json").write_text(json.dumps(headline))
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    (root / "loss.csv").write_text(loss)
    (root / "labels.csv").write_text(f"actual,predicted\nham,ham\nspam,{labels}\n")
    (root / "half.csv").write_text(f"epoch,moved,still\n1,{len(labels)},1\n2,0,2\n")
    (root / "same.csv").write_text("epoch,loss\n1,2\n2,1\n")
    (root / "picture.svg").write_text(f"<svg>{picture}</svg>")
    (root / "dvc.yaml").write_text(yaml.safe_dump(PLOTS))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two commits: on main, and on a branch with other results."""
    root = tmp_path_factory.mktemp("project")
    git(root, "init", "-q", "-b", "main")
    subprocess.run([sys.executable, "-m", "dvc", "init", "-q"], cwd=root, check=True)
    write(root, OLD_METRICS, OLD_PARAMS, OLD_LOSS, "ham", "old")
    git(root, "add", ".")
    git(root, "commit", "-q", "-m", "old")
    git(root, "checkout", "-q", "-b", "branch")
    write(root, NEW_METRICS, NEW_PARAMS, NEW_LOSS, "spam", "new")
    git(root, "commit", "-q", "-a", "-m", "new")
    return root


@pytest.fixture(scope="module")
def text(project: Path) -> str:
    return comparison_markdown(project)


# -- Tables ----------------------------------------------------------------------------------------------------------


def test_the_tables_have_what_changed_and_nothing_else(text: str) -> None:
    metrics, params, others = Rendered(text).tables
    assert metrics == [
        ["stage", "metric", "old", "new", "change"],
        ["finetune-classify", "test accuracy", "90.00%", "92.50%", "+2.50 points"],
    ]
    one_line = HOSTILE.replace("\n", "\\n")
    assert params == [
        ["param", "old", "new"],
        ["seed", "1", "2"],
        ["train.layers", "–", "['a', 'b']"],
        ["train.note", "plain", one_line],
    ]
    path = "metrics/finetune_classify.json"
    assert others == [
        ["file", "metric", "old", "new", "change"],
        [path, "gone", "2", "–", ""],
        [path, "judge", "chrf", one_line, ""],
        [path, "n", "1,000", "1,500", "+500 (+50.0%)"],
        [path, "test_ece", "0.25", "0.2", "-0.05 (-20.0%)"],
    ]


def test_the_first_sentence_counts_the_changes(text: str, project: Path) -> None:
    commit = git(project, "rev-parse", "main")[:7]
    where = f"{commit} (merge base with `main`)"
    assert f"Compared with {where}: 1 headline metric, 4 other metrics, 3 params, and 4 plots changed." in text


def test_headlines_come_first_and_name_what_a_baseline_is_compared_with() -> None:
    changes = [
        Change("metrics/llm_judge_eval.json", "echo_score", 1.0, 2.0),
        Change("metrics/pretrain.json", "val_loss", 3.00001, 3.00002),
        Change("metrics/pretrain.json", "val_perplexity", None, "broken"),
    ]
    (table,) = Rendered(markdown.render(Comparison(Base("a" * 40, "a"), changes, [], Changes(), []))).tables
    assert table[1:] == [
        ["pretrain", "validation loss, nats per token", "3.00001", "3.00002", "+1e-05"],
        ["pretrain", "validation perplexity", "–", "broken", ""],
        ["llm-judge-eval", "mean score, 0 to 100: echo of the input", "1.0", "2.0", "+1 (+100.0%)"],
    ]


# -- Plots -----------------------------------------------------------------------------------------------------------


def charts(text: str) -> list[tuple[tuple[float, float], list[list[float]]]]:
    """Return the range of x and the lines of each chart, read by the grammar of Mermaid's xychart."""
    number = r"[+-]?\d+(?:\.\d+)?"
    pattern = re.compile(
        rf"```mermaid\n%%\{{init: [^\n]+\}}%%\nxychart-beta\n"
        rf'    x-axis (?:"[^"\n`%]+" )?({number}) --> ({number})\n'
        rf'    y-axis (?:"[^"\n`%]+" )?{number} --> {number}\n'
        rf"    line \[((?:{number}(?:, )?)+)\]\n    line \[((?:{number}(?:, )?)+)\]\n```\n"
    )
    found = list(pattern.finditer(text))
    assert len(found) == text.count("```mermaid")
    return [((float(m[1]), float(m[2])), [[float(value) for value in m[i].split(", ")] for i in (3, 4)]) for m in found]


def straight(points: list[tuple[float, float]], x: float) -> float:
    """Return y between two neighboring points; before the first and after the last, theirs."""
    if x <= points[0][0]:
        return points[0][1]
    for (x0, y0), (x1, y1) in zip(points, points[1:], strict=False):
        if x <= x1:
            return y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    return points[-1][1]


def test_a_changed_curve_is_drawn_with_the_values_of_its_table(text: str) -> None:
    loss, constant, (ends, lines) = charts(text)
    assert "`Loss`: `train_loss`" in text and "`Loss`: `val_loss`" in text
    assert loss[0] == constant[0] == (0, 8) and {*constant[1][0], *constant[1][1]} == {3}
    for table, line in zip((OLD_LOSS, NEW_LOSS), loss[1], strict=True):
        rows = csv.DictReader(table.splitlines())
        points = [(float(row["epoch"]), float(row["train_loss"])) for row in rows]
        expected = [straight(points, 8 * i / (len(line) - 1)) for i in range(len(line))]
        assert line == pytest.approx(expected, abs=1e-3) and len(line) == 33
    assert "A curve that ends earlier continues as a horizontal line." in text and "shows their mean" not in text
    assert "`Half`: `moved`" in text and "still" not in text and ends == (1, 2)
    assert [line[0] for line in lines] == [3, 4]  # the lengths of "ham" and "spam"


def test_plots_that_are_no_curves_are_named(text: str) -> None:
    assert "Changed plots that are not drawn here: `Labels`, `picture.svg`." in text
    assert "Unchanged" not in text


@pytest.mark.slow
def test_new_and_removed_plots_are_named(project: Path, tmp_path: Path) -> None:
    root = tmp_path / "clone"
    git(tmp_path, "clone", "-q", str(project), "clone")
    plots = PLOTS["plots"][1:] + [{"Added": {"x": "epoch", "y": {"loss.csv": "val_loss"}}}]
    (root / "dvc.yaml").write_text(yaml.safe_dump({"plots": plots}))
    changes = compare(root, "HEAD").plots
    assert (changes.curves, changes.not_drawn, changes.added, changes.removed) == ([], [], ["Added"], ["Loss"])


def test_several_curves_are_drawn_as_their_mean() -> None:
    old = [np.array([(0.0, 1.0), (1.0, 3.0)]), np.array([(0.0, 3.0), (1.0, 5.0)])]
    new = [np.array([(0.0, 2.0), (1.0, 2.0)])]
    ((_, (first, second)),) = charts(mermaid.chart(Curve("p", "f", "x", "y", old, new)))
    assert (first[0], first[16], first[-1]) == (2, 3, 4) and set(second) == {2}


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e12])
def test_numbers_have_no_exponents_and_five_digits(scale: float) -> None:
    x = np.linspace(0, 1, 10)
    old, new = np.stack([x, scale * x], 1), np.stack([x, scale * x**2 / 3], 1)
    ((_, (first, second)),) = charts(mermaid.chart(Curve("p", "f", "", "", [old], [new])))
    assert first[-1] == pytest.approx(scale, rel=1e-4) and second[-1] == pytest.approx(scale / 3, rel=1e-4)


finite = st.floats(-1e6, 1e6)


@given(finite, finite)
@example(0.1, 0.7)
def test_mermaid_draws_every_point(low: float, high: float) -> None:
    if low >= high:
        return
    n = mermaid.n_points(low, high)
    positions, x = 0, low
    while x <= high and positions < 40:  # as Mermaid 11.4 counts them
        positions, x = positions + 1, x + (high - low) / (n - 1)
    assert 2 <= n <= 33 and (positions == n or n == 2)


# -- Hostile values --------------------------------------------------------------------------------------------------


def test_hostile_values_stay_in_code(text: str) -> None:
    rendered = Rendered(text)
    assert not {"img", "a", "script", "h1"} & set(rendered.tags)
    assert not set("@<>|$`") & set(rendered.prose) and "example" not in rendered.prose
    labels = re.findall(r"^ +[xy]-axis (.*)$", text, re.MULTILINE)
    assert len(labels) == 6 and not set("@<`|$#%&;") & set("".join(labels))


anything = st.text(st.characters(codec="utf-8"), max_size=60)
marks = st.lists(st.sampled_from(["`", "|", "\\", "<", ">", "@a", "$", " ", "\n", "&amp;", "*", "x"])).map("".join)


@given(
    anything
    | st.lists(st.sampled_from(["`", "|", "\\", "<", ">", "@a", "$", " ", "\n", "&amp;", "*", "x"])).map("".join)
)
@example("`")
@example("\\|")
@example("<!-- ")
@example("``` | `")
def test_any_value_stays_as_it_is_in_its_cell(value: str) -> None:
    cell = markdown.code(value)
    rendered = Rendered(f"| a | b |\n| --- | --- |\n| {cell} | x |\n")
    assert set(rendered.tags) <= {"table", "thead", "tbody", "tr", "th", "td", "code"}
    ((_, (shown, x)),) = rendered.tables
    expected = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in value) or '""'
    assert shown.split() == expected.split() and x == "x"


@given(anything)
@example('"] \n```\n@user %%{init: {"securityLevel": "loose"}}%%')
def test_any_label_stays_in_its_chart(label: str) -> None:
    line = np.array([(0.0, 0.0), (1.0, 1.0)])
    assert len(charts(mermaid.chart(Curve("p", "f", label, label, [line], [2 * line])))) == 1


def test_a_long_value_is_cut_in_the_middle() -> None:
    cell = markdown.code("a" * 500 + "z" * 500)
    assert len(cell) < 210 and cell.startswith("`aaa") and cell.endswith("zzz`")


# -- The limit of a comment ------------------------------------------------------------------------------------------


def test_a_comment_keeps_the_limit_and_says_what_it_leaves_out() -> None:
    line = np.random.default_rng(0).normal(size=(50, 2)).cumsum(0)
    line = line[line[:, 0].argsort()]
    curves = [Curve(f"|{i}" * 100, HOSTILE, HOSTILE, HOSTILE, [line], [line * [1, -1]]) for i in range(300)]
    rows = [Change(HOSTILE * 9, f"{i}{HOSTILE}", HOSTILE * 9, "|" * 500) for i in range(3000)]
    few, base = rows[:5], Base("b" * 40, HOSTILE)
    names = [f"{i}{HOSTILE}" for i in range(1000)]
    warnings = [f"WARNING: {HOSTILE}{i}" for i in range(50)]
    for metrics, params, changes in (
        (rows, rows, Changes(curves, names, names, names)),
        (few, rows, Changes()),
        (few, few, Changes(curves, names, names, names)),
        ([], [], Changes([], names, [], names)),
    ):
        text = markdown.render(Comparison(base, metrics, params, changes, warnings))
        assert len(text.encode()) < GITHUB_LIMIT and len(text.encode()) > 5_000
        assert text.count("<details>") == text.count("</details>") and text.count("```") % 2 == 0
        rendered = Rendered(text)
        assert "img" not in rendered.tags and "@org" not in rendered.prose
        n_shown = sum(len(table) - 1 for table in rendered.tables)
        left_out = [int(n.replace(",", "")) for n in re.findall(r"^([\d,]+) more rows?: see", text, re.MULTILINE)]
        assert n_shown + sum(left_out) == len(metrics) + len(params)
        assert len(changes) == 0 or re.search(r"[\d,]+ more\.", text)


# -- The command -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_without_changes_one_sentence_says_so(project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(project)
    out = tmp_path / "comment.md"
    result = CliRunner().invoke(cli, ["report", "--markdown", "--base", "HEAD", "--out", str(out)])
    assert (result.exit_code, result.output) == (0, "")
    commit = git(project, "rev-parse", "HEAD")[:7]
    assert out.read_text() == f"No metrics, params, or plots changed compared with {commit} (`HEAD`).\n"


@pytest.mark.slow
def test_damaged_results_are_named(project: Path, tmp_path: Path) -> None:
    git(tmp_path, "clone", "-q", str(project), "clone")
    (tmp_path / "clone/metrics/finetune_classify.json").write_text('{"test_accuracy": ')
    text = comparison_markdown(tmp_path / "clone", "HEAD")
    assert "DVC: `DVC failed to load some metrics for following revisions: 'workspace'.`" in text


@pytest.mark.slow
def test_the_working_tree_of_a_shallow_clone_is_compared(project: Path, tmp_path: Path) -> None:
    git(tmp_path, "clone", "-q", "--depth", "2", f"file://{project}", "clone")
    base = git(tmp_path / "clone", "rev-parse", "HEAD^1")
    (tmp_path / "clone/params.yaml").write_text(yaml.safe_dump(OLD_PARAMS | {"seed": 7}))
    comparison = compare(tmp_path / "clone", base)
    assert comparison.base == Base(base, base)
    assert comparison.params == [Change("params.yaml", "seed", 1, 7)]


def test_the_default_base_is_the_merge_base(project: Path, tmp_path: Path) -> None:
    git(tmp_path, "clone", "-q", "-b", "main", str(project), "clone")
    root = tmp_path / "clone"
    main = git(root, "rev-parse", "HEAD")
    git(root, "checkout", "-q", "-b", "work")
    git(root, "commit", "-q", "--allow-empty", "-m", "work")
    git(root, "remote", "set-head", "origin", "main")
    newer = git(root, "commit-tree", "-p", main, "-m", "later on main", f"{main}^{{tree}}")
    git(root, "update-ref", "refs/remotes/origin/main", newer)
    assert markdown.default_base(root) == Base(main, "origin/main", "merge base with ")
    git(root, "remote", "remove", "origin")
    git(root, "branch", "-q", "-D", "main")
    assert markdown.default_base(root) == Base(git(root, "rev-parse", "HEAD"), "HEAD")


@pytest.mark.parametrize("name", ["no-such-branch", "--help", "-x", "", "HEAD:params.yaml"])
def test_an_unknown_revision_is_named(project: Path, name: str) -> None:
    with pytest.raises(UserError, match="neither a Git revision nor an experiment") as error:
        comparison_markdown(project, name)
    assert str(error.value).startswith(f"{name}:") and "\n" not in str(error.value)


def test_other_mistakes_end_with_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(UserError, match="is in no Git repository; run in a clone of the project, or: git init"):
        comparison_markdown(tmp_path)
    git(tmp_path, "init", "-q")
    with pytest.raises(UserError, match=r"is no DVC project \(no folder .dvc\); .* or: dvc init"):
        comparison_markdown(tmp_path)
    (tmp_path / ".dvc").mkdir()
    with pytest.raises(UserError, match="has no commit to compare with; make one: git commit"):
        comparison_markdown(tmp_path)
    git(tmp_path, "commit", "-q", "--allow-empty", "-m", "x")
    (tmp_path / ".dvc/config").write_text("[core\n")
    with pytest.raises(UserError, match="`dvc metrics diff` failed: .*config"):
        comparison_markdown(tmp_path)


def test_a_base_without_markdown_is_refused() -> None:
    result = CliRunner().invoke(cli, ["report", "--base", "HEAD"])
    assert result.exit_code == 2 and "--base needs --markdown" in result.output


def test_the_examples() -> None:
    assert doctest.testmod(markdown).failed == 0
