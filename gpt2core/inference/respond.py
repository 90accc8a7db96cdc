"""Responses of an instruction-tuned model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gpt2core import prompts, runtime
from gpt2core.executor import report
from gpt2core.inference.batches import Batches
from gpt2core.inference.engine import by_length, check_prompts, generate_batch
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
    *,
    batches: Batches | None = None,
) -> list[str]:
    """Return the greedy response to each entry (`instruction` and `input`), without surrounding white space.

    `batches` may compute them elsewhere with the same model; by default this process does.
    """
    encoded = [tokenizer.encode(form(entry["instruction"], entry["input"])) for entry in entries]
    check_prompts(model, encoded)
    answers = [""] * len(entries)
    groups = by_length(encoded, batch_size)
    with runtime.progress(what="respond", unit="answer", total=len(entries)) as bar:
        work = ([[encoded[i] for i in group], max_new_tokens] for group in groups)
        results = (batches or Batches(model, tokenizer)).map(answer_batch, work, bar.update)
        for group, texts in zip(groups, results, strict=True):
            for i, text in zip(group, texts, strict=True):
                answers[i] = text
    return answers


def answer_batch(model: Packed, tokenizer: Tokenizer, prompts: Sequence[list[int]], max_new_tokens: int) -> list[str]:
    """Return the greedy answer to each prompt, without surrounding white space."""
    answers = generate_batch(
        model, prompts, max_new_tokens, eos_id=tokenizer.eot_id, batch_size=len(prompts), on_answer=report
    )
    return [tokenizer.decode(answer).strip() for answer in answers]
