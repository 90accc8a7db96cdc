"""Write docs/learn/worked-example.md and its drawing: one sentence through a two-layer GPT, with all numbers.

python tools/docs/worked_example.py            # the page, from the weights in worked_example.json
python tools/docs/worked_example.py --train    # train the weights again first
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import jinja2
import torch
import worked_example_svg
from torch import Tensor, nn

from gpt2core import files
from gpt2core.learn import (
    AdamW,
    GPTModel,
    LayerNorm,
    SimpleTokenizerV1,
    build_vocab,
    cross_entropy,
    softmax,
    split_words,
    train_step,
)
from gpt2core.runtime import stage_main

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/learn/worked-example.md"
DRAWING = ROOT / "docs/img/worked-example.svg"
WEIGHTS = Path(__file__).with_suffix(".json")

TRAINED_ON = "the cat sat on a mat"
N_READ = 3  # words of the example: the cat sat
CFG = dict(
    vocab_size=6, context_length=6, emb_dim=4, n_heads=2, n_layers=2, drop_rate=0.0, qkv_bias=True, tie_weights=True,
)  # fmt: skip
TOKENIZER = SimpleTokenizerV1(build_vocab(split_words(TRAINED_ON)))
VOCABULARY = list(TOKENIZER.str_to_int)
WORDS = split_words(TRAINED_ON)[:N_READ]


def train() -> GPTModel:
    """Train on one sentence until the model knows it, then round the weights to two decimals."""
    torch.manual_seed(3)
    model = GPTModel(CFG).double()
    nn.init.normal_(model.tok_emb.weight, std=0.5)
    nn.init.normal_(model.pos_emb.weight, std=0.5)
    optimizer = AdamW(model.parameters(), lr=0.02)
    ids = torch.tensor([TOKENIZER.encode(TRAINED_ON)])
    for _ in range(40):
        train_step(model, optimizer, ids[:, :-1], ids[:, 1:])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_((parameter * 100).round() / 100)
    return model


def save(model: GPTModel) -> None:
    """Write the weights as JSON, a row per line."""
    values = {name: tensor.tolist() for name, tensor in model.state_dict().items() if name != "out_head.weight"}
    text = json.dumps(values).replace(']], "', ']],\n"').replace('], "', '],\n"').replace("], [", "],\n[")
    files.write_text(WEIGHTS, text + "\n")


def load() -> GPTModel:
    """Return the model with the weights of the JSON file, in float64."""
    model = GPTModel(CFG).double()
    state = {name: torch.tensor(values).double() for name, values in files.read_json(WEIGHTS).items()}
    model.load_state_dict(state | {"out_head.weight": state["tok_emb.weight"]})
    return model.eval().requires_grad_(False)


class BlockSteps(NamedTuple):
    """What a block computes from its input; T words, C channels, H heads, D head size."""

    normed: Tensor  # [T, C], and so are those without a comment
    queries: Tensor
    keys: Tensor
    values: Tensor
    scores: Tensor  # [H, T, T], divided by √D
    weights: Tensor  # [H, T, T]
    mixed: Tensor
    attention: Tensor
    after_attention: Tensor
    normed2: Tensor
    hidden: Tensor  # [T, 4C]
    active: Tensor  # [T, 4C]
    feed_forward: Tensor
    output: Tensor


class Steps(NamedTuple):
    """What the model computes from the words."""

    token: Tensor  # [T, C]
    position: Tensor  # [T, C]
    embedded: Tensor  # [T, C]
    blocks: list[BlockSteps]
    normed: Tensor  # [T, C]
    logits: Tensor  # [T, V]
    probabilities: Tensor  # [T, V]
    loss: float  # of the next words, in nats


def block_steps(block: nn.Module, x: Tensor) -> BlockSteps:
    """Return all intermediate values of a block for an input [T, C]."""
    attention = block.att
    normed = block.norm1(x)
    q, k, v = (linear(normed) for linear in (attention.W_query, attention.W_key, attention.W_value))
    heads_q, heads_k, heads_v = (attention.split_heads(part[None])[0] for part in (q, k, v))  # [H, T, D]
    scores = heads_q @ heads_k.transpose(-2, -1) / math.sqrt(heads_q.size(-1))  # [H, T, T]
    T = len(x)
    weights = softmax(scores.masked_fill(attention.mask[:T, :T], float("-inf")))  # [H, T, T]
    mixed = (weights @ heads_v).transpose(0, 1).flatten(1)  # [T, H, D] -> [T, C]
    attended = attention.out_proj(mixed)
    after = x + attended
    normed2 = block.norm2(after)
    hidden = block.ff.layers[0](normed2)
    active = block.ff.layers[1](hidden)
    output = block.ff.layers[2](active)
    return BlockSteps(
        normed, q, k, v, scores, weights, mixed, attended, after, normed2, hidden, active, output, after + output
    )


def compute(model: GPTModel) -> Steps:
    """Return all intermediate values of the model for the words of the example."""
    ids = torch.tensor(TOKENIZER.encode(TRAINED_ON))
    token, position = model.tok_emb.weight[ids[:N_READ]], model.pos_emb.weight[:N_READ]
    x = token + position
    embedded, blocks = x, []
    for block in model.trf_blocks:
        blocks.append(block_steps(block, x))
        x = blocks[-1].output
    normed = model.final_norm(x)
    logits = normed @ model.tok_emb.weight.T
    loss = cross_entropy(logits, ids[1 : N_READ + 1])
    return Steps(token, position, embedded, blocks, normed, logits, softmax(logits), loss.item())


def number(value: float | Tensor, digits: int = 3) -> str:
    """Return a number as text, with a real minus sign and without a negative zero."""
    text = f"{float(value):.{digits}f}"
    return text.replace("-", "−") if float(text) else text.replace("-", "")


def signed(value: float | Tensor, digits: int = 3) -> str:
    """Return a number as text, in parentheses if it has a minus sign."""
    text = number(value, digits)
    return f"({text})" if text.startswith("−") else text


def table(corner: str, columns: Iterable[object], rows: Iterable[object], values: Tensor, digits: int = 3) -> str:
    """Return a Markdown table of a matrix [rows, columns]."""
    titles = [str(column) for column in columns]
    lines = [f"| {corner} | {' | '.join(titles)} |", "|---|" + "---:|" * len(titles)]
    lines += [
        f"| **{name}** | {' | '.join(number(value, digits) for value in row)} |"
        for name, row in zip(rows, values.tolist(), strict=True)
    ]
    return "\n".join(lines) + "\n"


def channels(values: Tensor) -> str:
    """Return a table of a vector per word, [T, C]."""
    return table("channel", range(1, values.size(1) + 1), WORDS, values)


def dot(left: Tensor, right: Tensor) -> str:
    """Return a dot product as text: 0.1 · 0.2 + 0.3 · 0.4."""
    return " + ".join(f"{signed(a)} · {signed(b)}" for a, b in zip(left, right, strict=True))


def weights(model: GPTModel) -> Iterator[tuple[str, Tensor, list[str]]]:
    """Yield each part's name, its weights as a matrix, and the names of the rows; linear layers are [in, out]."""
    yield "tok_emb", model.tok_emb.weight, VOCABULARY
    for name, module in model.named_modules():
        if isinstance(module, LayerNorm):
            yield name, torch.stack([module.scale, module.shift]), ["scale", "shift"]
        elif isinstance(module, nn.Linear) and module.bias is not None:
            rows = [*map(str, range(1, module.in_features + 1)), "bias"]
            yield name, torch.cat([module.weight.T, module.bias[None]]), rows
        elif name == "pos_emb":
            yield name, module.weight, [str(position) for position in range(len(module.weight))]


def page(model: GPTModel, steps: Steps) -> str:
    """Return the text of the page."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, autoescape=False, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters |= {"number": number, "signed": signed, "dot": dot}
    return environment.get_template("worked_example.md.jinja").render(
        steps=steps, model=model, words=WORDS, last=WORDS[-1], vocabulary=VOCABULARY, trained_on=TRAINED_ON,
        ids=TOKENIZER.encode(" ".join(WORDS)), n_parameters=sum(p.numel() for p in model.parameters()),
        towards=[f"to {word}" for word in WORDS], gelu_words=[f"GELU({word})" for word in WORDS],
        both=lambda step: torch.cat([step.hidden, step.active]).T, channels=channels, table=table,
        weights=list(weights(model)),
    )  # fmt: skip


def main(*arguments: str) -> None:
    """Write the page and the drawing."""
    if "--train" in arguments:
        save(train())
    model = load()
    steps = compute(model)
    files.write_text(PAGE, page(model, steps))
    files.write_text(DRAWING, worked_example_svg.drawing(WORDS, VOCABULARY, steps))


if __name__ == "__main__":
    stage_main(lambda: main(*sys.argv[1:]))
