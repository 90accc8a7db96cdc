from __future__ import annotations

from collections import Counter

import pytest
import regex

from gpt2core.learn import bpe_encode, bpe_steps, count_pairs, spell
from gpt2core.learn.bpe import WORD_PATTERN
from gpt2core.sources.synthetic import generate_tales
from gpt2core.tokenizer import byte_pair
from gpt2core.tokenizer.train import train_bpe

HARD = "  I'll  go—naïve 123,456\n\n\tthe end… 🙂 don't  "


def test_the_commented_pattern_cuts_as_gpt2s_does() -> None:
    for text in (HARD, *generate_tales(0, 3)):
        assert WORD_PATTERN.findall(text) == regex.findall(byte_pair.WORD_PATTERN, text)


@pytest.mark.parametrize("text", [HARD * 3, "".join(generate_tales(1, 6))])
def test_merges_and_tokens_are_the_pipelines(text: str) -> None:
    n_merges = 40
    merges = [step.pair for step in bpe_steps(text, n_merges)]
    theirs = train_bpe([text], 257 + len(merges))
    assert merges == theirs.merges
    for sample in (text[:400], HARD, generate_tales(7, 1)[0]):
        assert bpe_encode(sample, merges) == [theirs.token_bytes(i) for i in theirs.encode(sample)]


def test_each_step_joins_the_pair_it_counted() -> None:
    before = spell("low lower lowest newest")
    for step in bpe_steps("low lower lowest newest", 6):
        assert step.count == count_pairs(before)[step.pair] == max(count_pairs(before).values())
        assert step.pair not in count_pairs(step.words)
        assert Counter({b"".join(w): n for w, n in step.words.items()}) == Counter(
            {b"".join(w): n for w, n in before.items()}
        )
        before = step.words


def test_learning_ends_when_every_word_is_one_token() -> None:
    steps = list(bpe_steps("ab ab", 100))
    assert len(steps) == 2 and all(len(word) == 1 for word in steps[-1].words)
