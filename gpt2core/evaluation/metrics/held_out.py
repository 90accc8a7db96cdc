"""The metrics of a pretrained model on text that it was not trained on, and two references for them."""

from __future__ import annotations

from collections.abc import Callable

from gpt2core.corpus.shards import Shard, documents
from gpt2core.evaluation.metrics.language_model import evaluate
from gpt2core.evaluation.metrics.trigram import Trigram
from gpt2core.model import GPT
from gpt2core.tokenizer import Tokenizer

MAX_TRIGRAM_TOKENS = 20_000_000  # its counts are held in memory


def held_out_metrics(
    model: GPT,
    train: Shard,
    val: Shard,
    tokenizer: Tokenizer,
    context: int,
    log2_probability: Callable[[str], float] | None = None,
) -> dict[str, float | None]:
    """Return the metrics of a model, and the bits per byte of two references on the same split.

    Args:
        model: the model.
        train: split that the trigram is counted on.
        val: split that everything is evaluated on.
        tokenizer: of both splits.
        context: length of a window in tokens.
        log2_probability: of a text under the source of the corpus; None: nobody knows it.
    """
    trigram = Trigram(train.tokens[:MAX_TRIGRAM_TOKENS], tokenizer.vocab_size)
    floor = None
    if log2_probability:
        texts = (tokenizer.decode(ids.tolist()) for ids in documents(val, tokenizer.eot_id))
        floor = round(-sum(map(log2_probability, texts)) / val.n_bytes, 6)
    return {
        **evaluate(model, val, tokenizer.eot_id, context),
        "trigram_bits_per_byte": round(trigram.bits_per_byte(val.tokens, tokenizer.eot_id, val.n_bytes), 6),
        "bits_per_byte_floor": floor,
    }
