"""Inspection of a model on one text, as values that a page, a figure, or a terminal can show.

Shapes: L layers, H heads, T tokens, C channels, D = C / H head size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2core.errors import UserError
from gpt2core.inference.sampling import Sampling
from gpt2core.model import GPT, GPTClassifier
from gpt2core.model.attention import attention_weights
from gpt2core.model.gpt import Block, Transformer
from gpt2core.tokenizer import Tokenizer

TEMPERATURES = (0.5, 1.0, 2.0)
DIGITS = 6  # of every number in the results
VISIBLE = str.maketrans({" ": "·", "\n": "↵", "\t": "→", "\r": "␍"})
MAX_WEIGHTS = 1 << 23  # attention weights that are kept: 241 tokens of the 124M, 83 of the 1558M


class Trace(NamedTuple):
    """Intermediate results of a transformer for one text."""

    hidden: Tensor  # [L + 1, T, C], the residual path before the first block and after each block
    attention: Tensor  # [L, H, T, T], on the CPU; row t has the weights of position t for positions 0 to t


@torch.no_grad()
def trace(transformer: Transformer, ids: Tensor) -> Trace:
    """Run a transformer in eval mode on ids [T].

    Raises:
        UserError: there are no ids, or more than the model's context or `MAX_WEIGHTS` allows.
    """
    config = transformer.config
    T, C, H = len(ids), config.n_embd, config.n_head
    _check_length(T, config.n_positions, config.n_layer * H)
    x = transformer.wte(ids[None]) + transformer.wpe(torch.arange(T, device=ids.device))  # [1, T, C]
    hidden, attention = [x[0]], []
    for block in cast(Iterable[Block], transformer.h):
        # The block computes them again, by a kernel that never holds the weights.
        q, k, _ = block.attn.c_attn(block.ln_1(x)).view(1, T, 3, H, C // H).permute(2, 0, 3, 1, 4)  # 3 × [1, H, T, D]
        attention.append(attention_weights(q, k)[0].float().cpu())  # [H, T, T]
        x = block(x)
        hidden.append(x[0])
    return Trace(torch.stack(hidden), torch.stack(attention))


def _check_length(n_tokens: int, n_positions: int, n_heads: int) -> None:
    if n_tokens == 0:
        raise UserError("there are no tokens to look at; give a prompt")
    if n_tokens > n_positions:
        raise UserError(f"the prompt has {n_tokens} tokens, the model {n_positions} positions; shorten it")
    if n_tokens**2 * n_heads > MAX_WEIGHTS:
        longest = int((MAX_WEIGHTS / n_heads) ** 0.5)
        raise UserError(
            f"the prompt has {n_tokens} tokens; with the {n_heads} heads of this model at most {longest} can be shown, "
            "since each head has a weight for each pair of tokens; shorten it"
        )


@dataclass(frozen=True)
class Candidate:
    """A possible next token, and its probability."""

    id: int
    token: str
    probability: float


@dataclass(frozen=True)
class Temperature:
    """The next token's distribution at one temperature: its entropy, and the candidates' probabilities."""

    temperature: float
    entropy_bits: float
    probabilities: list[float]


@dataclass(frozen=True)
class Inspection:
    """The common part of inspections of language models and classifiers.

    Args:
        ids: [T]
        tokens: [T], in visible form (see `visible`).
        attention: [L, H, T, T]; row t has the weights of position t for positions 0 to t.
    """

    ids: list[int]
    tokens: list[str]
    attention: Tensor

    def to_json(self) -> dict[str, Any]:
        """Return the inspection as JSON values."""
        weights = self.attention.double().numpy().round(DIGITS).tolist()
        return {"ids": self.ids, "tokens": self.tokens, "attention": weights}


@dataclass(frozen=True)
class LanguageModelInspection(Inspection):
    """Inspection of a language model.

    Args:
        lens: [L + 1][T][top], the most likely next tokens if the model ended before the first block or after each block
            (the "logit lens", nostalgebraist 2020). The last row is the model's prediction.
        loss_nats: [T], loss of each token given the tokens before it; None for the first.
        temperatures: distribution of the next token at each temperature.
    """

    lens: list[list[list[Candidate]]]
    loss_nats: list[float | None]
    temperatures: list[Temperature]

    @property
    def candidates(self) -> list[Candidate]:
        """The most likely tokens after the text: [top]."""
        return self.lens[-1][-1]

    @property
    def mean_loss_nats(self) -> float | None:
        """Mean loss of the tokens after the first; None if there are none."""
        known = [loss for loss in self.loss_nats if loss is not None]
        return sum(known) / len(known) if known else None

    @property
    def by_temperature(self) -> dict[float, list[float]]:
        """The candidates' probabilities at each temperature."""
        return {row.temperature: row.probabilities for row in self.temperatures}

    def to_json(self) -> dict[str, Any]:
        """Return the inspection as JSON values."""
        return super().to_json() | {
            "loss_nats": self.loss_nats,
            "lens": [[[vars(c) for c in position] for position in layer] for layer in self.lens],
            "candidates": [vars(candidate) for candidate in self.candidates],
            "temperatures": [vars(row) for row in self.temperatures],
        }


@dataclass(frozen=True)
class ClassifierInspection(Inspection):
    """Inspection of a classifier.

    Args:
        labels: the classes.
        classes: [L + 1][labels], probabilities if the model ended before the first block or after each block.
    """

    labels: tuple[str, ...]
    classes: list[list[float]]

    def to_json(self) -> dict[str, Any]:
        """Return the inspection as JSON values."""
        return super().to_json() | {"labels": list(self.labels), "classes": self.classes}


def inspect(
    model: GPT | GPTClassifier,
    tokenizer: Tokenizer,
    ids: Sequence[int],
    *,
    top: int = 5,
    temperatures: Sequence[float] = TEMPERATURES,
) -> LanguageModelInspection | ClassifierInspection:
    """Run a model in eval mode on a text, and return its intermediate results.

    Args:
        model: a language model or a classifier.
        tokenizer: of the model.
        ids: [T], the text.
        top: number of most likely tokens per position.
        temperatures: temperatures for the distribution of the next token; 0 is greedy.

    Raises:
        UserError: the text is empty or too long.
    """
    if isinstance(model, GPTClassifier):
        return _inspect_classifier(model, tokenizer, ids)
    return inspect_language_model(model, tokenizer, ids, top, temperatures)


@torch.no_grad()
def inspect_language_model(
    model: GPT, tokenizer: Tokenizer, ids: Sequence[int], top: int = 5, temperatures: Sequence[float] = TEMPERATURES
) -> LanguageModelInspection:
    """Inspect a language model; see `inspect`."""
    target = torch.tensor(ids, dtype=torch.long, device=model.transformer.wte.weight.device)  # [T]
    traced = trace(model.transformer, target)
    lens = []
    for hidden in traced.hidden:  # one layer at a time: logits of all would be [L + 1, T, V]
        logits = model.lm_head(model.transformer.ln_f(hidden)).float()  # [T, V]
        lens.append(_candidates(logits.softmax(-1), tokenizer, top))
    loss_nats = F.cross_entropy(logits[:-1], target[1:], reduction="none").tolist()  # the last layer's: the model's own
    chosen = [candidate.id for candidate in lens[-1][-1]]
    rows = []
    for temperature in temperatures:
        p = distribution(logits[-1], temperature)
        entropy_bits = torch.special.entr(p).sum().item() / torch.log(torch.tensor(2.0)).item()
        rows.append(Temperature(temperature, round(entropy_bits, DIGITS), _rounded(p[chosen])))
    return LanguageModelInspection(
        ids=[*ids],
        tokens=[_token(i, tokenizer) for i in ids],
        attention=traced.attention,
        lens=lens,
        loss_nats=[None, *(round(loss, DIGITS) for loss in loss_nats)],
        temperatures=rows,
    )


@torch.no_grad()
def _inspect_classifier(model: GPTClassifier, tokenizer: Tokenizer, ids: Sequence[int]) -> ClassifierInspection:
    device = model.transformer.wte.weight.device
    traced = trace(model.transformer, torch.tensor(ids, dtype=torch.long, device=device))
    hidden = model.transformer.ln_f(traced.hidden)  # [L + 1, T, C]: the layers as rows of a batch
    lengths = torch.full((len(hidden),), len(ids), device=device)  # [L + 1]
    logits = model.score(model.pool(hidden, lengths)).float()  # [L + 1, labels]
    return ClassifierInspection(
        ids=[*ids],
        tokens=[_token(i, tokenizer) for i in ids],
        attention=traced.attention,
        labels=model.labels,
        classes=[_rounded(row) for row in logits.softmax(-1)],
    )


def distribution(logits: Tensor, temperature: float) -> Tensor:
    """Return the probabilities [V] of the next token at a temperature, from logits [V]."""
    sampling = Sampling(temperature)
    if sampling.greedy:
        return F.one_hot(logits.argmax(), len(logits)).float()
    return sampling.filter(logits[None])[0].softmax(-1)


def visible(token: bytes) -> str:
    r"""Return a token with visible white space and escaped bytes of incomplete characters.

    >>> visible(b" lamp\n"), visible("é".encode()), visible(b"\xc3")
    ('·lamp↵', 'é', '\\xc3')
    """
    text = token.decode("utf-8", "backslashreplace").translate(VISIBLE)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _token(token_id: int, tokenizer: Tokenizer) -> str:
    """Return the visible form of a token; an id that the tokenizer does not have is shown as a number."""
    return visible(tokenizer.token_bytes(token_id)) if token_id < tokenizer.vocab_size else f"[{token_id}]"


def _candidates(probabilities: Tensor, tokenizer: Tokenizer, top: int) -> list[list[Candidate]]:
    """Return the most likely tokens, [T][top], from probabilities [T, V]."""
    best = probabilities.topk(min(top, probabilities.size(-1)))
    return [
        [Candidate(i, _token(i, tokenizer), round(p, DIGITS)) for i, p in zip(ids, ps, strict=True)]
        for ids, ps in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def _rounded(values: Tensor) -> list[float]:
    return [round(value, DIGITS) for value in values.tolist()]
