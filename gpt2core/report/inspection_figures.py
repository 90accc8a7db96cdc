"""Inspection of a pretrained model on the start of the validation text, and its figures for MLflow."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from gpt2core.corpus.shards import Shard, first_tokens
from gpt2core.inspect.inspection import LanguageModelInspection, inspect_language_model
from gpt2core.model import GPT
from gpt2core.tokenizer import Tokenizer
from gpt2core.tracking import StageRun
from gpt2core.tracking.plots import text

PROMPT_TOKENS = 16  # of the first validation document


def inspect_first_document(model: GPT, tokenizer: Tokenizer, val: Shard) -> LanguageModelInspection:
    """Inspect a model on the first tokens of the validation shard."""
    ids = first_tokens(val, tokenizer.eot_id, min(PROMPT_TOKENS, model.config.n_positions))
    return inspect_language_model(model, tokenizer, ids)


def log_inspection(run: StageRun, model: GPT, tokenizer: Tokenizer, val: Shard) -> None:
    """Log the attention of every head, and how the temperature changes the probabilities of the next token.

    A run that is not tracked computes nothing.
    """
    inspection = cache(lambda: inspect_first_document(model, tokenizer, val))
    run.log_figure(
        "pretrain_attention",
        lambda path: text.attention_heatmaps(inspection().attention.numpy(), inspection().tokens, path),
    )
    run.log_figure("pretrain_temperature", lambda path: draw_temperatures(inspection(), path))


def draw_temperatures(inspection: LanguageModelInspection, path: Path) -> None:
    """Draw the probabilities of the next token by temperature."""
    text.temperature_effect([candidate.token for candidate in inspection.candidates], inspection.by_temperature, path)
