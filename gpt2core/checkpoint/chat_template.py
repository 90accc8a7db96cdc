"""The prompt template that a model directory was tuned with, from its chat template."""

from __future__ import annotations

from pathlib import Path

from gpt2core import files, prompts
from gpt2core.prompts import Prompt

MAX_TEMPLATE_BYTES = 16 << 20  # tokenizer_config.json may list added tokens


def read_chat_template(path: Path) -> str | None:
    """Return the chat template of a model directory, or None."""
    own_file, config = path / "chat_template.jinja", path / "tokenizer_config.json"
    if own_file.exists():  # where transformers 5 writes it
        return files.read_text(own_file, MAX_TEMPLATE_BYTES)
    content = files.read_json(config, MAX_TEMPLATE_BYTES) if config.exists() else None
    template = content.get("chat_template") if isinstance(content, dict) else None
    return template if isinstance(template, str) else None


def prompt_of(path: Path) -> Prompt | None:
    """Return one of `prompts.PROMPTS`, or None if the directory has no chat template or an unknown one."""
    return prompts.of_chat_template(read_chat_template(path))


def instruction_prompt(path: Path) -> Prompt:
    """Return the prompt that a model directory was tuned with; Alpaca's if it has no known chat template."""
    return prompt_of(path) or prompts.alpaca
