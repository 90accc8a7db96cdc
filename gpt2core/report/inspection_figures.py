"""Figures of a pretrained model on the start of the validation text, for its run in MLflow."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

from gpt2core.corpus.shards import Shard, first_tokens
from gpt2core.inspect import LanguageModelInspection, inspect
from gpt2core.model import GPT
from gpt2core.tokenizer import Tokenizer
from gpt2core.tracking import StageRun, plots

PROMPT_TOKENS = 16  # of the first validation document


def log_inspection(run: StageRun, model: GPT, tokenizer: Tokenizer, val: Shard) -> None:
    """Log the attention of every head, and how the temperature changes the probabilities of the next token.

    Args:
        run: tracks the stage; a run that is not tracked computes nothing.
        model: the pretrained model.
        tokenizer: of the model.
        val: validation tokens; the first ones are the prompt.
    """

    @cache
    def inspection() -> LanguageModelInspection:
        return inspect(
            model, tokenizer, first_tokens(val, tokenizer.eot_id, min(PROMPT_TOKENS, model.config.n_positions))
        )

    run.log_figure("pretrain_attention", _draw_attention, inspection)
    run.log_figure("pretrain_temperature", _draw_temperature, inspection)


def _draw_attention(inspection: Callable[[], LanguageModelInspection], path: Path) -> None:
    plots.attention_heatmaps(inspection().attention.numpy(), inspection().tokens, path)


def _draw_temperature(inspection: Callable[[], LanguageModelInspection], path: Path) -> None:
    next_tokens = [candidate.token for candidate in inspection().candidates]
    plots.temperature_effect(next_tokens, inspection().by_temperature, path)
