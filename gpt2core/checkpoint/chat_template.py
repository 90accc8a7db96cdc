"""Which prompt a model directory was tuned with, by the chat template that it keeps."""

from __future__ import annotations

from pathlib import Path

from gpt2core import files, prompts
from gpt2core.prompts import Prompt


def prompt_of(path: Path) -> Prompt | None:
    """One of `prompts.PROMPTS`; None where the directory has no chat template, or another's."""
    own_file, config = path / "chat_template.jinja", path / "tokenizer_config.json"
    if own_file.exists():  # where transformers 5 writes it
        return prompts.of_chat_template(files.read_text(own_file))
    content = files.read_json(config) if config.exists() else None
    return prompts.of_chat_template(content.get("chat_template")) if isinstance(content, dict) else None
