"""Word tokenizers: a text is split into words and punctuation marks, and each distinct one gets a number."""

from __future__ import annotations

import re
from collections.abc import Iterable

from gpt2core.errors import UserError

# Split at, and keep, punctuation marks, double dashes, and white space.
SEPARATORS = re.compile(r"""([,.:;?_!"()']|--|\s)""")
# Joining puts a space before a mark, which is removed again.
SPACE_BEFORE_MARK = re.compile(r"""\s+([,.:;?!"()'])""")
END_OF_TEXT, UNKNOWN = "<|endoftext|>", "<|unk|>"


def split_words(text: str) -> list[str]:
    """Return the words and marks of a text, without white space.

    >>> split_words("Hello, world. Is this-- a test?")
    ['Hello', ',', 'world', '.', 'Is', 'this', '--', 'a', 'test', '?']
    """
    return [piece.strip() for piece in SEPARATORS.split(text) if piece.strip()]


def build_vocab(words: Iterable[str], special: Iterable[str] = ()) -> dict[str, int]:
    """Map the distinct words in alphabetical order, then the special tokens, to numbers.

    >>> build_vocab(["the", "cat", "the"], special=["<|unk|>"])
    {'cat': 0, 'the': 1, '<|unk|>': 2}
    """
    return {word: number for number, word in enumerate([*sorted(set(words)), *special])}


class SimpleTokenizerV1:
    """Words to ids and back; a word outside the vocabulary is an error.

    Args:
        vocab: each word's id, from `build_vocab`.
    """

    def __init__(self, vocab: dict[str, int]):
        self.str_to_int = vocab
        self.int_to_str = {number: word for word, number in vocab.items()}

    def encode(self, text: str) -> list[int]:
        """Return the ids of the words of a text. Raises UserError on a word outside the vocabulary."""
        words = split_words(text)
        for word in words:
            if word not in self.str_to_int:
                raise UserError(
                    f"the word {word!r} is not among the {len(self.str_to_int)} of this vocabulary; "
                    "SimpleTokenizerV2 has a token for unknown words"
                )
        return [self.str_to_int[word] for word in words]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the words joined by spaces, with none before a mark: white space is not restored."""
        text = " ".join(self.int_to_str[number] for number in ids)
        return SPACE_BEFORE_MARK.sub(r"\1", text)


class SimpleTokenizerV2(SimpleTokenizerV1):
    """Words to ids with `<|unk|>` for unknown words, and `<|endoftext|>` between texts.

    Args:
        vocab: must have `<|unk|>`, and `<|endoftext|>` if texts are joined by it.
    """

    def __init__(self, vocab: dict[str, int]):
        if UNKNOWN not in vocab:
            raise UserError(f"the vocabulary has no {UNKNOWN}; make it with build_vocab(words, special=['{UNKNOWN}'])")
        super().__init__(vocab)

    def encode(self, text: str) -> list[int]:
        """Return the ids of the words of a text, `<|unk|>` in place of a word outside the vocabulary."""
        return [self.str_to_int.get(word, self.str_to_int[UNKNOWN]) for word in split_words(text)]
