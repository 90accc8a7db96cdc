"""The fast way gives the ids of the plain way, for any text."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gpt2core.errors import UserError
from gpt2core.tokenizer import Tokenizer, read_bpe
from gpt2core.tokenizer.bulk import BulkEncoder
from gpt2core.tokenizer.train import train_bpe, train_char

LEARNED = train_bpe(["the cat's hat,  the rat's mat\n\n\tthe 12 bats don't"], 275)
SPACES = " \n\t\r\f\v\x85\xa0\u1680\u2003\u2028\u2029\u202f\u205f\u3000\x1c\x1f\u200b\ufeff"
texts = st.text(
    st.one_of(st.sampled_from(SPACES + "aé'1.s☃\U0001f98a\x00\x01"), st.characters(exclude_categories=["Cs"]))
)


def one_by_one(tokenizer: Tokenizer, pieces: list[tuple[str, bool]]) -> list[int]:
    return [i for text, ends in pieces for i in tokenizer.encode(text) + [tokenizer.eot_id] * ends]


@given(st.lists(texts.map(lambda text: (text, True)), max_size=4))
@example([("  a", True), ("a  ", True), ("  ", True), ("", True)])
@example([("a \n\n b\r\n\r\nc\n", True), ("\t\tif x:\n\n        y", True), (" ", True)])
@example([("\xa0 a", True), ("a\x00  b", True), ("<|endoftext|>", True)])
@settings(max_examples=500)
def test_bulk_encoding_equals_one_by_one(pieces: list[tuple[str, bool]]) -> None:
    assert BulkEncoder(LEARNED).encode(pieces).tolist() == one_by_one(LEARNED, pieces)


def test_a_document_in_pieces_is_one_document() -> None:
    pieces = [("the cat's", False), (" hat,  the", False), ("\nrat", True), ("the", True)]
    ids = BulkEncoder(LEARNED).encode(pieces).tolist()
    whole = LEARNED.encode("the cat's hat,  the\nrat")
    assert ids == [*whole, LEARNED.eot_id, *LEARNED.encode("the"), LEARNED.eot_id]


def test_a_character_tokenizer_still_refuses_what_it_does_not_know() -> None:
    encoder = BulkEncoder(train_char(["abc é"]))
    assert encoder.encode([("éa", True)]).tolist() == one_by_one(encoder.tokenizer, [("éa", True)])
    with pytest.raises(UserError, match="'z' is not one of them"):
        encoder.encode([("abz", True)])


def test_novels_in_gpt2s_tokens(mirror: Path) -> None:
    tokenizer = read_bpe(mirror / "gpt2-bpe" / "encoder.json", mirror / "gpt2-bpe" / "vocab.bpe")
    for name in ("1342-0.txt", "1661.txt"):
        text = (mirror / "novels" / name).read_bytes().decode()[:300_000]  # with \r\n
        assert BulkEncoder(tokenizer).encode([(text, True)]).tolist() == [*tokenizer.encode(text), tokenizer.eot_id]
