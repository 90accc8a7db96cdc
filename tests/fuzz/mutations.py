"""Changes to a valid file that keep most of its structure, so that they reach further than random bytes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

# The same inputs in each run, so that a failure is found again.
FUZZ = settings(
    max_examples=int(os.environ.get("GPT2CORE_FUZZ_CASES", "2000")), derandomize=True, deadline=None, database=None,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip

# Parts of files that have made a reader fail, here or elsewhere.
TOKENS = (
    b"", b"\0", b"\xff", b"\xfe\xff", b"\xef\xbb\xbf", b"\r", b"\r\n", b"\n\n", b"\t", b",", b'"', b"'", b"\\",
    b"\\ud800",
    b"{", b"}", b"[", b"]", b":", b"- ", b"&a ", b"*a", b"<<: *a", b"!!python/none", b"#", b"%",
    b"null", b"true", b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-1", b"0", b"0.5", b"1e-400", b"9" * 30,
    b"9" * 5000,
    b"[" * 3000, b"{" * 3000, b'{"a":' * 3000, b" " * 5000, b"../../etc", b"/dev/zero", b"\xc2\x85", b"\xe2\x80\xa8",
    b"F32", b"I32", b"BF16", b"F64", b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01", b"\xff\xff\xff\xff",
    b"\x00\x00\x00\x00",
)  # fmt: skip


@st.composite
def mutated(draw: st.DrawFn, content: bytes) -> bytes:
    """Return the content after one to four changes: a byte, an insertion, a deletion, a repetition, a cut."""
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(content)))
        end = min(len(content), start + draw(st.sampled_from((0, 1, 2, 4, 8, 64, 1000))))
        middle = draw(
            st.one_of(
                st.sampled_from(TOKENS),
                st.binary(max_size=8),
                st.just(content[start:end] * 3),
                st.just(content[::-1][start:end]),
            )
        )
        content = content[:start] + middle + content[end:]
        if draw(st.integers(0, 19)) == 0:
            content = content[:start]
    return content


def numbers_changed(content: bytes) -> st.SearchStrategy[bytes]:
    """Return the content with one of its words or numbers replaced, which leaves JSON, YAML, and CSV well formed."""
    import re

    places = [match.span() for match in re.finditer(rb'(?<=[:,\[\s])\s*("[^"\n]*"|[-\w.]+)', content)]
    if not places:
        return mutated(content)

    def replaced(place: tuple[int, int], token: bytes) -> bytes:
        return content[: place[0]] + b" " + token + content[place[1] :]

    values = st.sampled_from(
        [*TOKENS, b'"text"', b'""', b"{}", b"[]", b"[1, null]", b'{"a": 1}', b"1.5", b"-3", b"1000000000"]
    )
    return st.builds(replaced, st.sampled_from(places), values)


def hostile(content: bytes) -> st.SearchStrategy[bytes]:
    """Return changed content of either kind."""
    return st.one_of(mutated(content), numbers_changed(content), st.binary(max_size=200))


def reads(read: Callable[[], object], error: type[Exception], path: Path) -> None:
    """Check that a reader returns, or raises one error whose message is short and names the file."""
    try:
        read()
    except error as caught:
        message = str(caught)
        assert message.strip(), "an empty message"
        assert len(message) < 5000, f"a message of {len(message):,} characters"
        assert path.name in message or str(path.parent) in message, f"no {path.name} in {message}"
