"""A byte-level BPE tokenizer: a table of tokens, encoded by `tiktoken`, kept in GPT-2's own two files.

The three kinds of the pipeline differ only in the table: `train.py` learns it, GPT-2's comes from OpenAI's files, and
one token per character is a table whose merges only join the bytes of a character.
"""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from typing import Any

import regex
import tiktoken

from gpt2core import files
from gpt2core.errors import UserError

END_OF_TEXT = "<|endoftext|>"

# Words are cut before merging (Radford et al. 2019, section 2.2), so that no token spans two of them.
WORD_PATTERN = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""

# tiktoken overflows its stack on a run of about a million white spaces.
LONG_RUN_CHARS = 100_000
LONG_RUN = regex.compile(rf"\p{{White_Space}}{{{LONG_RUN_CHARS},}}")


@functools.cache
def printable_bytes() -> dict[int, str]:
    """Return GPT-2's printable character for each byte, so that a vocabulary can be JSON.

    Printable Latin-1 stays as it is, the other 68 bytes move to U+0100 and above: a space is written Ġ. The order of
    this dict is the order of GPT-2's first 256 ids.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    moved = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(moved)}


def _to_printable(token: bytes) -> str:
    return token.decode("latin-1").translate(printable_bytes())


@functools.cache
def _from_printable_table() -> dict[str, int]:
    return {character: byte for byte, character in printable_bytes().items()}


def from_printable(text: str) -> bytes:
    """Return the bytes of a text in GPT-2's printable characters. Raises KeyError on another character."""
    return bytes(map(_from_printable_table().__getitem__, text))


def _may_have_long_run(text: str) -> bool:
    """Return quickly whether LONG_RUN can match: a run covers at least one block of half its length."""
    half = LONG_RUN_CHARS // 2
    return any(text[start : start + half].isspace() for start in range(0, len(text) - half, half))


class Tokenizer:
    """Text to ids and back.

    Args:
        ranks: each token's bytes with its id; of two possible merges the one with the lower id is applied first.
        merges: pairs of tokens in the order in which they were learned, as in `merges.txt`.
        eot_id: the id of `<|endoftext|>`, which separates documents and is never found in plain text.
        add_prefix_space: whether a text without a space at its start gets one, so that its first word is as any other.
    """

    def __init__(
        self,
        ranks: dict[bytes, int],
        merges: list[tuple[bytes, bytes]],
        eot_id: int,
        *,
        add_prefix_space: bool = False,
    ):
        self.ranks, self.merges, self.eot_id, self.add_prefix_space = ranks, merges, eot_id, add_prefix_space
        self.vocab_size = max([*ranks.values(), eot_id]) + 1
        # tiktoken panics on a byte that no token starts with; only a character tokenizer has such gaps.
        self._foreign = None
        if any(bytes([byte]) not in ranks for byte in range(256)):
            known = "".join(regex.escape(t.decode()) for t in ranks if _is_character(t))
            self._foreign = regex.compile(f"[^{known}]")

    @property
    def has_every_text(self) -> bool:
        """Whether every text has ids, as in all but character tokenizers."""
        return self._foreign is None

    @functools.cached_property
    def _encoding(self) -> tiktoken.Encoding:
        return tiktoken.Encoding(
            "gpt2core", pat_str=WORD_PATTERN, mergeable_ranks=self.ranks, special_tokens={END_OF_TEXT: self.eot_id}
        )

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """Return the ids of a text; `<|endoftext|>` is plain text, unless `allow_special` makes it the separator.

        Raises:
            UserError: a character tokenizer meets a character that its corpus did not have.
        """
        if self._foreign:
            plain = text.replace(END_OF_TEXT, "") if allow_special else text
            if unknown := self._foreign.search(plain):
                raise UserError(
                    f"the tokenizer knows only the characters of its corpus, and {unknown.group()!r} is not one "
                    "of them; leave it out, or train with tokenizer.kind: bpe"
                )
        if not allow_special:
            return self._encode_words(text)
        first, *others = text.split(END_OF_TEXT)
        return self._encode_words(first) + [i for other in others for i in (self.eot_id, *self._encode_words(other))]

    def _encode_words(self, text: str) -> list[int]:
        """Encode, with the words that tiktoken cannot cut, because they overflow its stack, cut here."""
        if self.add_prefix_space and text and not text.startswith(" "):
            text = " " + text
        ids: list[int] = []
        start = 0
        for run in LONG_RUN.finditer(text) if _may_have_long_run(text) else ():
            end = run.end() - (run.end() < len(text))  # the pattern leaves the last white space to the next word
            ids += self._encoding.encode_ordinary(text[start : run.start()])
            ids += self._encoding._encode_single_piece(text[run.start() : end])
            start = end
        return ids + self._encoding.encode_ordinary(text[start:])

    def decode(self, ids: list[int]) -> str:
        """Return the text of ids; bytes that are not UTF-8 become U+FFFD. Raises UserError on an unknown id."""
        try:
            return self._encoding.decode(ids)
        except KeyError as error:
            raise UserError(f"token id {error} is not in this vocabulary of {self.vocab_size}") from None

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes of one token."""
        return self._encoding.decode_single_token_bytes(token_id)

    @functools.cached_property
    def id_to_token(self) -> dict[int, str]:
        """Each id with the token as `vocab.json` writes it."""
        tokens = {i: _to_printable(token) for token, i in self.ranks.items()}
        return dict(sorted((tokens | {self.eot_id: END_OF_TEXT}).items()))

    def save(
        self,
        folder: str | os.PathLike[str],
        *,
        model_max_length: int | None = None,
        extra: dict[str, Any] | None = None,
    ) -> None:
        """Write `vocab.json`, `merges.txt`, `tokenizer.json`, `tokenizer_config.json` as transformers writes them.

        Args:
            folder: where to.
            model_max_length: the model's context in tokens, where there is a model.
            extra: more keys for the last file, such as a chat template.
        """
        folder = Path(folder)
        vocab = {token: i for i, token in self.id_to_token.items()}
        files.write_text(folder / "vocab.json", json.dumps(vocab, ensure_ascii=False))
        merges = [f"{_to_printable(left)} {_to_printable(right)}" for left, right in self.merges]
        files.write_text(folder / "merges.txt", "\n".join(["#version: 0.2", *merges]) + "\n")
        files.write_text(folder / "tokenizer.json", json.dumps(self._tokenizer_json(vocab, merges), ensure_ascii=False))
        files.write_json(
            folder / "tokenizer_config.json",
            {
                "tokenizer_class": "GPT2Tokenizer",
                "bos_token": END_OF_TEXT,
                "eos_token": END_OF_TEXT,
                "unk_token": END_OF_TEXT,
                "pad_token": END_OF_TEXT,
                "add_prefix_space": self.add_prefix_space,
                **({"model_max_length": model_max_length} if model_max_length else {}),
                **(extra or {}),
            },
        )

    def _tokenizer_json(self, vocab: dict[str, int], merges: list[str]) -> dict[str, Any]:
        """Return the content of the file in which the library `tokenizers` keeps everything."""
        byte_level = {"type": "ByteLevel", "add_prefix_space": self.add_prefix_space, "trim_offsets": True}
        is_in_text = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        return {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [{"id": self.eot_id, "content": END_OF_TEXT, **is_in_text, "special": True}],
            "normalizer": None,
            "pre_tokenizer": {**byte_level, "use_regex": True},
            "post_processor": {**byte_level, "trim_offsets": False, "use_regex": True},
            "decoder": {**byte_level, "use_regex": True},
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": "",
                "end_of_word_suffix": "",
                "fuse_unk": False,
                "byte_fallback": False,
                "ignore_merges": False,
                "vocab": vocab,
                "merges": [merge.split(" ") for merge in merges],
            },
        }


def is_part_of_character(token: bytes) -> bool:
    """Return whether a token is a single byte, a character, or the first bytes of one."""
    return len(token) == 1 or (token[0] >= 0xC0 and len(token.decode(errors="ignore")) <= 1)


def _is_character(token: bytes) -> bool:
    try:
        return len(token.decode()) == 1
    except UnicodeDecodeError:
        return False
