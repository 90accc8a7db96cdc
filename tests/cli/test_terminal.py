"""Control characters of files and models do not reach a terminal; a pipe gets every byte."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from gpt2core.checkpoint.model_dir import save_model
from gpt2core.cli import cli
from gpt2core.model import GPTClassifier
from tests.small import config_and_tokenizer, reconfigure

LABELS = {"0": "\x1b]0;title\x07ham", "1": "\x1b[2J\u202espam"}


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    sizes, tokenizer = config_and_tokenizer()
    save_model(tmp_path / "c", GPTClassifier(sizes, ("ham", "spam")), tokenizer)
    reconfigure(tmp_path / "c", {"id2label": LABELS})
    return tmp_path / "c"


@pytest.mark.parametrize("is_terminal", [True, False])
@pytest.mark.parametrize("command", ["classify", "verify"])
def test_labels_and_texts_are_escaped_for_a_terminal(
    classifier: Path,
    tmp_path: Path,
    command: str,
    is_terminal: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "texts.txt").write_text("one \x1b]0;title\x07\ntwo\n")
    arguments = [command, str(classifier), *(["--file", str(tmp_path / "texts.txt")] if command == "classify" else [])]
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal)
    try:
        cli.main(arguments, standalone_mode=False)
    except SystemExit as ended:
        assert ended.code == 0
    output = capsys.readouterr().out
    assert ("\x1b]0;title" in output) is not is_terminal
    assert (r"\x1b]0;title\x07" in output) is is_terminal
    if is_terminal:
        assert "\x1b" not in output and "\u202e" not in output
