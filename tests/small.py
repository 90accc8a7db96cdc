"""What small random models are made of, for tests that want model directories and no meaning."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from gpt2core.checkpoint.model_dir import save_model
from gpt2core.model import GPT, GPTConfig
from gpt2core.tokenizer import Tokenizer
from gpt2core.tokenizer.train import train_bpe

TEXT = "The keeper of the harbour took the lamp to the tower, and the lamp was lit. " * 4


def config_and_tokenizer(
    n_positions: int = 320, n_embd: int = 16, initializer_range: float = 0.3
) -> tuple[GPTConfig, Tokenizer]:
    """Two blocks and a BPE of `TEXT`. Seeds what draws the weights of the models made next."""
    tokenizer = train_bpe([TEXT], 280)
    torch.manual_seed(0)
    sizes = dict(n_positions=n_positions, n_embd=n_embd, n_layer=2, n_head=2)
    return GPTConfig(tokenizer.vocab_size, initializer_range=initializer_range, **sizes), tokenizer


def save_small_model(folder: Path) -> Path:
    """Write a model directory of random weights, the same each time."""
    sizes, tokenizer = config_and_tokenizer()
    save_model(folder, GPT(sizes), tokenizer)
    return folder


def reconfigure(folder: Path, changes: dict[str, object], remove: Sequence[str] = ()) -> None:
    """Change keys of a model directory's `config.json`, and remove others."""
    path = folder / "config.json"
    content = {key: value for key, value in json.loads(path.read_text()).items() if key not in remove}
    path.write_text(json.dumps(content | changes))


def retensor(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    """Replace a model directory's tensors."""
    path = folder / "model.safetensors"
    save_file(change({name: tensor.clone() for name, tensor in load_file(path).items()}), path, {"format": "pt"})
