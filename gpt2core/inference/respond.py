"""Responses of an instruction-tuned model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gpt2core import prompts, runtime
from gpt2core.inference.engine import generate_batch
from gpt2core.model.inference import Packed
from gpt2core.prompts import Prompt
from gpt2core.tokenizer import Tokenizer


def respond(
    model: Packed,
    tokenizer: Tokenizer,
    entries: Sequence[Mapping[str, str]],
    max_new_tokens: int,
    batch_size: int = 32,
    form: Prompt = prompts.alpaca,
) -> list[str]:
    """Return the greedy response to each entry (`instruction` and `input`), without surrounding white space."""
    encoded = [tokenizer.encode(form(entry["instruction"], entry["input"])) for entry in entries]
    with runtime.progress(what="respond", unit="answer", total=len(entries)) as bar:
        answers = generate_batch(
            model, encoded, max_new_tokens, eos_id=tokenizer.eot_id, batch_size=batch_size, on_answer=bar.update
        )
    return [tokenizer.decode(answer).strip() for answer in answers]
