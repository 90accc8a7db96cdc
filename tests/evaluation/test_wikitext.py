"""WikiText's spaces, against lm-eval's rules on the real files."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpt2core.evaluation.wikitext import detokenize


@pytest.mark.parametrize("name", ["valid.txt", "test.txt"])
def test_it_is_what_lm_eval_does_on_each_line(mirror: Path, name: str) -> None:
    theirs = pytest.importorskip("lm_eval.tasks.wikitext.preprocess_wikitext")
    lines = (mirror / "wikitext-2" / name).read_text(encoding="utf-8").split("\n")
    ours = detokenize("\n".join(lines)).split("\n")
    expected = [theirs.wikitext_detokenizer({"page": f"\n{line}\n"}).strip() for line in lines]
    # Their last rule is the Penn Treebank's: it takes the letter N, here a compass point or an initial, for a number.
    differ = [line for line, a, b in zip(lines, ours, expected, strict=True) if a != b]
    assert all(" N " in line for line in differ) and len(differ) < 30
    assert ours != lines


def test_no_word_is_lost(mirror: Path) -> None:
    text = (mirror / "wikitext-2/test.txt").read_text(encoding="utf-8")
    assert len(text.split()) + text.count("\n") == 245_569  # as published, with a mark at the end of each line
    bare = text.replace("@-@", "-").replace("@,@", ",").replace("@.@", ".")
    assert "".join(detokenize(text).split()) == "".join(bare.split())
