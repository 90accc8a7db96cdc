"""Write the page that shows the attention of a small model, which the site embeds: build/inside.html.

python tools/docs/inside.py
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.nn.functional as F

from gpt2core import files
from gpt2core.inspect import inspect
from gpt2core.model import GPT, GPTConfig
from gpt2core.report.inside import inspection_page
from gpt2core.runtime import stage_main
from gpt2core.sources.synthetic import generate_tales
from gpt2core.tokenizer import Tokenizer
from gpt2core.tokenizer.train import train_bpe

PROMPT = "Once there was a weaver named Nora. Nora lived at the mill. Nora was"


def small_model(steps: int) -> tuple[GPT, Tokenizer]:
    """Return a GPT of 0.14 million parameters, trained on tales, in eval mode, and its tokenizer."""
    torch.manual_seed(0)
    torch.set_num_threads(1)  # the model is tiny
    tales = generate_tales(seed=0, n_documents=300)
    tokenizer = train_bpe(tales, vocab_size=512)
    ids = torch.tensor(tokenizer.encode("".join(tales)))
    windows = ids[: len(ids) // 65 * 65].view(-1, 65)  # [n, T + 1]
    model = GPT(GPTConfig(vocab_size=512, n_positions=64, n_embd=64, n_layer=2, n_head=4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.1)
    for _ in range(steps):
        batch = windows[torch.randint(len(windows), (16,))]  # [B, T + 1]
        loss = F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval(), tokenizer


def main(path: str, steps: int = 400) -> None:
    """Train the model, and write the page."""
    model, tokenizer = small_model(steps)
    page = inspection_page("a small GPT", PROMPT, inspect(model, tokenizer, tokenizer.encode(PROMPT)))
    files.write_text(Path(path), page)


if __name__ == "__main__":
    stage_main(lambda: main(*(sys.argv[1:] or ["build/inside.html"])))
