"""The baseline that answers with the nearest training answer, like a model that only memorizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer

_ROWS = 256  # queries at a time; the dense similarities have 256 × training entries × 8 bytes


def nearest_outputs(train: Sequence[Mapping[str, str]], queries: Sequence[Mapping[str, str]]) -> list[str]:
    """Return, for each query, the `output` of the training entry whose instruction and input are nearest.

    Similarity is the cosine of TF-IDF vectors (Salton & Buckley 1988) fitted on the training entries; of equals, the
    first is taken. `train` must have at least one entry with a letter or sign.
    """
    # Every word and sign counts, also those of one character, which sklearn would drop: "3 + 5", "a or an".
    vectorizer = TfidfVectorizer(token_pattern=r"\w+|[^\w\s]")
    train_vectors = vectorizer.fit_transform(_text(entry) for entry in train)  # [N, V], rows of length 1
    query_vectors = vectorizer.transform(_text(entry) for entry in queries)  # [Q, V]
    nearest: list[int] = []
    for start in range(0, len(queries), _ROWS):
        cosines = (query_vectors[start : start + _ROWS] @ train_vectors.T).toarray()  # [<= 256, N]
        # Rounded, so that a tie is a tie on any machine; argmax returns the first.
        nearest.extend(np.round(cosines, 12).argmax(axis=1).tolist())
    return [train[index]["output"] for index in nearest]


def _text(entry: Mapping[str, str]) -> str:
    return f"{entry['instruction']}\n{entry['input']}"
