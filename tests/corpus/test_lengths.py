"""Lengths of tokens and documents, beside counting them one by one."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from gpt2core.corpus import lengths
from gpt2core.corpus.documents import Piece
from gpt2core.corpus.shards import Shard, open_shard, write_shard
from gpt2core.tokenizer import Tokenizer
from gpt2core.tokenizer.train import train_bpe

TEXTS = ["The lamp is lit.", "The lamp", "A tale of the harbour and of the lamp, and of the keeper " * 3, "a", "é!"]


@pytest.fixture(params=[7, 1 << 22], ids=["small blocks", "one block"])
def shard(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Shard, Tokenizer]:
    monkeypatch.setattr(lengths, "BLOCK_TOKENS", request.param)
    tokenizer = train_bpe([" ".join(TEXTS)], 290)
    write_shard(tmp_path / "a.bin", (Piece(text, True) for text in TEXTS), tokenizer)
    return open_shard(tmp_path / "a.bin"), tokenizer


def test_tokens_by_their_bytes(shard: tuple[Shard, Tokenizer]) -> None:
    opened, tokenizer = shard
    rows = lengths.token_lengths(tokenizer, opened)
    ids = [i for text in TEXTS for i in tokenizer.encode(text)]
    assert {row["bytes"]: row["text"] for row in rows if row["text"]} == Counter(
        len(tokenizer.token_bytes(i)) for i in ids
    )
    assert {row["bytes"]: row["vocabulary"] for row in rows} == Counter(map(len, tokenizer.ranks))


def test_documents_by_their_tokens(shard: tuple[Shard, Tokenizer]) -> None:
    opened, tokenizer = shard
    rows = lengths.document_lengths(opened, tokenizer.eot_id)
    expected = Counter(len(tokenizer.encode(text)).bit_length() for text in TEXTS)
    assert {row["to"].bit_length() - 1: row["documents"] for row in rows if row["documents"]} == expected
    assert all(row["from"] == row["to"] // 2 for row in rows)
    assert [row["from"] for row in rows[1:]] == [row["to"] for row in rows[:-1]]


def test_a_document_without_its_end_and_an_empty_one_count(shard: tuple[Shard, Tokenizer]) -> None:
    tokens = np.array([9, 1, 2, 9, 9, 1, 1, 1], np.uint16)  # of 0, 2, 0 and 3 tokens
    rows = lengths.document_lengths(Shard(tokens, 10, 3, 8), 9)
    assert [(row["from"], row["to"], row["documents"]) for row in rows] == [(0, 1, 2), (1, 2, 0), (2, 4, 2)]
    one = lengths.document_lengths(Shard(tokens[5:], 10, 1, 3), 9)
    assert [(row["from"], row["to"], row["documents"]) for row in one] == [(2, 4, 1)]
