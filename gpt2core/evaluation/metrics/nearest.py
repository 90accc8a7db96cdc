"""The nearest training answer: what a model that only remembers could say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer

_ROWS = 256  # queries at a time: bounds the dense similarities to 256 × training entries × 8 bytes


def nearest_outputs(train: Sequence[Mapping[str, str]], queries: Sequence[Mapping[str, str]]) -> list[str]:
    """For each query the `output` of the training entry whose instruction and input are nearest.

    Near is the cosine of TF-IDF vectors (Salton & Buckley 1988) fitted on the training entries; of equally near ones
    the first is taken. `train` must hold at least one entry, and a letter or sign in one of them.
    """
    # Every word and sign counts, also those of one character, which sklearn would drop: "3 + 5", "a or an".
    vectorizer = TfidfVectorizer(token_pattern=r"\w+|[^\w\s]")
    known = vectorizer.fit_transform(_text(entry) for entry in train)  # [N, V], rows of length 1
    asked = vectorizer.transform(_text(entry) for entry in queries)  # [Q, V]
    nearest: list[int] = []
    for start in range(0, len(queries), _ROWS):
        cosines = (asked[start : start + _ROWS] @ known.T).toarray()  # [<= 256, N]
        # Rounded, so that a tie is a tie on any machine; argmax returns the first.
        nearest.extend(np.round(cosines, 12).argmax(axis=1).tolist())
    return [train[index]["output"] for index in nearest]


def _text(entry: Mapping[str, str]) -> str:
    return f"{entry['instruction']}\n{entry['input']}"
