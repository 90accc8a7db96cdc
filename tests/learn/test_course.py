"""The reader's project in examples/course: its tests pass with a solution, and fail without one or with a mistake."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.timeout(1600)  # two minutes, and more on a busy machine
COURSE = ROOT / "examples/course"
HERE = Path(__file__).parent / "course"
SOLUTION = (HERE / "solution.py").read_text(encoding="utf-8")
STEPS = sorted(path.stem for path in COURSE.glob("test_*.py"))


class Mistake(NamedTuple):
    """A typical mistake: what replaces which part of the solution, and the number of the step that must notice it."""

    step: int
    right: str
    wrong: str


MISTAKES = {
    "marks stay at words": Mistake(1, r"\w+|[^\w\s]", r"\S+"),
    "the rarest pair first": Mistake(2, "(-counts[pair], pair)", "(counts[pair], pair)"),
    "merges in the wrong order": Mistake(
        2, "in enumerate(merges):\n        ids", "in reversed([*enumerate(merges)]):\n        ids"
    ),
    "targets are the inputs": Mistake(3, "ids[start + 1 : start + length + 1]", "ids[start : start + length]"),
    "the last window is lost": Mistake(
        3, "range(0, len(ids) - length, stride)", "range(0, len(ids) - length - 1, stride)"
    ),
    "no positions": Mistake(3, " + position_table[: ids.size(1)]", ""),
    "softmax overflows": Mistake(4, "torch.exp(x - x.amax(dim=-1, keepdim=True))", "torch.exp(x)"),
    "softmax over the rows": Mistake(
        4, "exponentials.sum(dim=-1, keepdim=True)", "exponentials.sum(dim=0, keepdim=True)"
    ),
    "a sum for the mean": Mistake(4, ".log().mean()", ".log().sum()"),
    "up the slope": Mistake(5, "parameter -= lr", "parameter += lr"),
    "gradients add up": Mistake(5, "parameter.grad = None", "pass"),
    "no mask": Mistake(6, 'scores.masked_fill(future, float("-inf"))', "scores"),
    "a token cannot see itself": Mistake(6, ".triu(1)", ".triu(0).logical_and(torch.arange(T)[:, None] > 0)"),
    "no scaling": Mistake(6, " / math.sqrt(D)", ""),
    "scaled by D": Mistake(6, "/ math.sqrt(D)", "/ D"),
    "heads without a transpose": Mistake(7, "mixed.transpose(1, 2).reshape", "mixed.reshape"),
    "queries and keys swapped": Mistake(7, "causal_attention(q, k, v)", "causal_attention(k, q, v)"),
    "the sample variance": Mistake(8, "centered.pow(2).mean(dim=-1, keepdim=True)", "x.var(dim=-1, keepdim=True)"),
    "no epsilon": Mistake(8, "variance + 1e-5", "variance"),
    "erf GELU": Mistake(8, "torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))", "torch.erf(x / math.sqrt(2))"),
    "post-norm": Mistake(
        8,
        "x = x + self.attn(self.ln_1(x))\n        return x + self.mlp(self.ln_2(x))",
        "x = self.ln_1(x + self.attn(x))\n        return self.ln_2(x + self.mlp(x))",
    ),
    "no residual connection": Mistake(8, "return x + self.mlp(self.ln_2(x))", "return self.mlp(self.ln_2(x))"),
    "an untied output layer": Mistake(
        9,
        "self.ln_f = LayerNorm(emb_dim)\n",
        "self.ln_f = LayerNorm(emb_dim)\n        self.head = nn.Linear(emb_dim, vocab_size, bias=False)\n",
    ),
    "no final norm": Mistake(9, "self.ln_f(x) @", "x @"),
    "embeddings of variance 1": Mistake(9, "std=0.02", "std=1.0"),
    "gradients of the step before": Mistake(10, "    optimizer.zero_grad()\n", ""),
    "no training": Mistake(10, "    optimizer.step()\n", ""),
    "the first token of the window": Mistake(
        11, "ids[:, -model.wpe.num_embeddings :]", "ids[:, : model.wpe.num_embeddings]"
    ),
    "temperature multiplies": Mistake(11, "logits / temperature", "logits * temperature"),
    "top-k keeps all": Mistake(11, "if top_k is not None:", "if False:"),
    "matrices as they are in the file": Mistake(12, "tensor.T if is_linear else tensor", "tensor"),
    "c_proj as it is in the file": Mistake(
        12, '"c_attn.weight", "c_proj.weight", "c_fc.weight"', '"c_attn.weight", "c_fc.weight"'
    ),
}


def folder_with(code: str, folder: Path, steps: list[str]) -> str:
    """A copy of the course with this `gpt.py` and the tests of these steps."""
    folder.mkdir()
    for name in ("conftest", *steps):
        shutil.copyfile(COURSE / f"{name}.py", folder / f"{name}.py")
    (folder / "gpt.py").write_text(code, encoding="utf-8")
    return str(folder)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """The outcome of each test with the solution, with each mistake, and with the file as a reader gets it."""
    tmp_path = tmp_path_factory.mktemp("course")
    empty = (COURSE / "gpt.py").read_text(encoding="utf-8")
    folders = {"solution": folder_with(SOLUTION, tmp_path / "solution", STEPS)}
    folders["empty"] = folder_with(empty, tmp_path / "empty", STEPS)
    for number, (name, mistake) in enumerate(MISTAKES.items()):
        code = SOLUTION.replace(mistake.right, mistake.wrong)
        folders[name] = folder_with(code, tmp_path / f"mistake{number}", [STEPS[mistake.step - 1]])
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, HERE / "run.py", *folders.values()], cwd=tmp_path, env=environment, capture_output=True,
        text=True, timeout=1500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout.splitlines()[-1])
    return {name: results[folder] for name, folder in folders.items()}


@pytest.mark.slow
def test_a_solution_passes_every_step(outcomes: dict[str, dict[str, str]]) -> None:
    passed = {test.partition("::")[0] for test, outcome in outcomes["solution"].items() if outcome == "passed"}
    assert passed == {f"{step}.py" for step in STEPS}
    assert [outcome for outcome in outcomes["solution"].values() if outcome not in ("passed", "skipped")] == []


@pytest.mark.slow
def test_the_file_of_a_reader_fails_every_test_at_what_is_not_written(outcomes: dict[str, dict[str, str]]) -> None:
    assert outcomes["empty"].keys() == outcomes["solution"].keys()
    ran = {test: outcome for test, outcome in outcomes["empty"].items() if outcome != "skipped"}
    assert [test for test, outcome in ran.items() if "NotImplementedError" not in outcome] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_found_in_its_step(name: str, outcomes: dict[str, dict[str, str]]) -> None:
    assert SOLUTION.count(MISTAKES[name].right) >= 1
    failed = [outcome for outcome in outcomes[name].values() if outcome not in ("passed", "skipped")]
    assert failed and not any("SyntaxError" in outcome or "NameError" in outcome for outcome in failed)


def signatures(code: str) -> list[str]:
    """Each function and class with its arguments and docstring, in order."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            arguments = ast.unparse(node.args) if isinstance(node, ast.FunctionDef) else ""
            found.append(f"{node.name}({arguments}) {ast.get_docstring(node)}")
    return found


def test_the_reader_gets_the_signatures_of_the_solution() -> None:
    empty = (COURSE / "gpt.py").read_text(encoding="utf-8")
    assert signatures(empty) == signatures(SOLUTION)
    functions = [node for node in ast.walk(ast.parse(empty)) if isinstance(node, ast.FunctionDef)]
    assert all(ast.unparse(node.body[-1]) == "raise NotImplementedError" for node in functions)
    assert len(functions) == SOLUTION.count("def ")


@pytest.mark.parametrize("path", ["examples/course/README.md", "docs/learn/project.md"])
def test_the_pages_name_every_step_in_order(path: str) -> None:
    text = (ROOT / path).read_text(encoding="utf-8")
    assert re.findall(r"^\| .*?`(test_\d\d_\w+)\.py`", text, re.MULTILINE) == STEPS
    assert len(STEPS) == 12
