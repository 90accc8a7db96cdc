"""From the raw corpus to a tokenizer and two token shards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from gpt2core import config, files
from gpt2core.data.corpus import Corpus
from gpt2core.data.shards import Shard, write_shard
from gpt2core.tokenizer import Tokenizer
from gpt2core.tokenizer.train import train_bpe, train_char


def tokenize(params: config.Tokenizer, seed: int, raw_dir: Path, out_dir: Path) -> dict[str, Any]:
    """Choose or learn the tokenizer on the training split, encode both splits, and return their figures.

    Args:
        params: kind of tokenizer, vocabulary size, validation fraction.
        seed: decides which documents are held out.
        raw_dir: what `download-data` made: `corpus/`, with `gpt2-bpe/` in it for GPT-2's own tokenizer.
        out_dir: gets `train.bin`, `val.bin` and the tokenizer's files; whole or not at all.
    """
    corpus = Corpus(raw_dir / "corpus", params.val_fraction, seed)
    training_text = (piece.text for piece in corpus.pieces("train"))
    match params.kind:
        case "bpe":
            tokenizer = train_bpe(training_text, params.vocab_size)
        case "char":  # of the whole corpus: validation may have a character that training lacks
            tokenizer = train_char(piece.text for split in ("train", "val") for piece in corpus.pieces(split))
        case "gpt2":
            folder = raw_dir / "corpus" / "gpt2-bpe"
            tokenizer = Tokenizer.from_files(folder / "encoder.json", folder / "vocab.bpe")
    with files.atomic_dir(out_dir) as folder:
        train = write_shard(folder / "train.bin", corpus.pieces("train"), tokenizer)
        val = write_shard(folder / "val.bin", corpus.pieces("val"), tokenizer)
        tokenizer.save(folder)
        return {
            "vocab_size": tokenizer.vocab_size,
            "train_tokens": train.n_tokens,
            "train_documents": train.n_documents,
            "train_bytes": train.n_bytes,
            "val_tokens": val.n_tokens,
            "val_documents": val.n_documents,
            "val_bytes": val.n_bytes,
            "bytes_per_token": round((train.n_bytes + val.n_bytes) / (train.n_tokens + val.n_tokens), 4),
            "unigram_entropy_nats": round(unigram_entropy_nats(train), 4),
        }


def unigram_entropy_nats(shard: Shard) -> float:
    """Entropy of the token frequencies: the loss of the best model that knows no context."""
    counts = np.zeros(shard.vocab_size, np.int64)
    for start in range(0, shard.n_tokens, 1 << 22):
        counts += np.bincount(shard.tokens[start : start + (1 << 22)], minlength=shard.vocab_size)
    p = counts[counts > 0] / shard.n_tokens
    return float(-(p * np.log(p)).sum())
