from __future__ import annotations

import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2core.errors import UserError
from gpt2core.inference import TextStream, text

EOS = -1
# Few characters, so that stop strings are met; of one, two, three and four bytes, and what broken bytes become.
CHARACTERS = "abé€🙂\ufffd\n"
TEXTS = st.text(CHARACTERS, max_size=40)
STOPS = st.lists(st.text(CHARACTERS, min_size=1, max_size=4), max_size=3)


def cut(whole: str, stops: list[str]) -> str:
    """The text before the stop string that is complete first, character by character."""
    for end in range(len(whole) + 1):
        complete = [len(stop) for stop in stops if whole[:end].endswith(stop)]
        if complete:
            return whole[: end - max(complete)]
    return whole


@st.composite
def tokens(draw: st.DrawFn) -> list[bytes]:
    """Bytes, mostly UTF-8, cut anywhere."""
    data = draw(TEXTS.map(str.encode) | st.binary(max_size=20))
    edges = sorted(draw(st.lists(st.integers(0, len(data)), max_size=20)))
    return [data[a:b] for a, b in zip([0, *edges], [*edges, len(data)], strict=True)]


@given(tokens(), STOPS)
def test_the_text_is_cut_before_the_first_stop_wherever_the_tokens_edges_lie(
    tokens: list[bytes], stops: list[str]
) -> None:
    row = TextStream(tokens.__getitem__, stops=stops)
    pieces = [row.push(i) for i in range(len(tokens))]
    pieces.append(row.close())
    expected = cut(b"".join(tokens).decode("utf-8", "replace"), stops)
    assert "".join(pieces) == row.text == expected
    assert row.finished


@given(TEXTS, STOPS, st.lists(st.integers(1, 6), min_size=1))
def test_no_more_is_held_back_than_must_be(whole: str, stops: list[str], sizes: list[int]) -> None:
    """After each token: all whole characters, but for an end with which a stop string begins."""
    data, at = whole.encode(), 0
    row = TextStream(lambda size: data[at : at + size], stops=stops)
    for size in sizes:
        row.push(size)
        at += size
        characters = data[:at].decode("utf-8", "ignore")
        if row.finished:
            assert row.text == cut(characters, stops)
            return
        held = characters[len(row.text) :]
        assert row.text + held == characters
        assert not held or any(stop.startswith(held) for stop in stops)
        assert not any(stop in characters for stop in stops)


def test_a_stop_may_begin_and_end_inside_tokens() -> None:
    row = TextStream([b"one. ", b"##", b"# two"].__getitem__, stops=["###"])
    assert [row.push(0), row.push(1), row.finished] == ["one. ", "", False]
    assert [row.push(2), row.finished] == ["", True]
    assert [row.push(0), row.close(), row.text, row.n_tokens] == ["", "", "one. ", 3]


@pytest.mark.parametrize(("stops", "expected"), [(["abc", "b"], "xa"), (["c", "abc", "bc"], "x")], ids=str)
@pytest.mark.parametrize("tokens", [[b"xabcy"], [b"xab", b"cy"], [b"x", b"a", b"b", b"c", b"y"]], ids=str)
def test_of_several_stops_the_one_complete_first_counts_then_the_longest(
    tokens: list[bytes], stops: list[str], expected: str
) -> None:
    row = TextStream(tokens.__getitem__, stops=stops)
    assert "".join(row.push(i) for i in range(len(tokens))) == expected
    assert row.finished


def test_what_only_looked_like_a_stop_is_given() -> None:
    row = TextStream([b"a##", b"b", b"##"].__getitem__, stops=["###"])
    assert [row.push(0), row.push(1), row.push(2), row.close()] == ["a", "##b", "", "##"]


def test_the_end_of_text_ends_it_and_does_not_count() -> None:
    row = TextStream([b"a#", b"b"].__getitem__, EOS, stops=["##"])
    assert [row.push(0), row.push(EOS), row.push(1)] == ["a", "#", ""]
    assert (row.finished, row.text, row.n_tokens) == (True, "a#", 1)


def test_a_character_that_is_never_completed_becomes_the_replacement() -> None:
    row = TextStream(["é".encode()[:1]].__getitem__, stops=[])
    assert [row.push(0), row.close()] == ["", "\ufffd"]


def test_an_empty_stop_is_refused() -> None:
    with pytest.raises(UserError, match="stop string is empty"):
        TextStream([b""].__getitem__, stops=["a", ""])


def test_the_example_in_the_docstring_is_true() -> None:
    assert doctest.testmod(text) == (0, 4)
