"""The usual training loops: an evaluation every few steps, and a sample or the accuracy after each epoch.

One loss serves both. Targets [B, T] are the next tokens of a language model. Targets [B] are the classes of a
classifier, which reads the last token of each text.

Shapes: B batch, T tokens, V vocabulary or classes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from gpt2core.learn.classify import last_token_logits
from gpt2core.learn.dataset import Codec
from gpt2core.learn.generation import generate_text_simple, text_to_token_ids, token_ids_to_text
from gpt2core.learn.gpt import GPTModel
from gpt2core.learn.losses import cross_entropy

Loader = DataLoader[tuple[Tensor, Tensor]]
Device = torch.device | str
PAD = 50256  # GPT-2's <|endoftext|>


def target_logits(
    input_batch: Tensor, target_batch: Tensor, model: nn.Module, device: Device, pad_token_id: int | None = PAD
) -> tuple[Tensor, Tensor]:
    """Return the logits that have a target, [N, V], and the targets, [N].

    Args:
        input_batch: ids [B, T].
        target_batch: next ids [B, T], or classes [B].
        model: ids [B, T] to logits [B, T, V].
        device: the model's device.
        pad_token_id: the padding after each text of a classifier; None: read the last position, padding or not.
    """
    input_batch, target_batch = input_batch.to(device), target_batch.to(device)
    if target_batch.dim() == 2:
        return model(input_batch).flatten(0, 1), target_batch.flatten()  # [B·T, V], [B·T]
    T = input_batch.size(1)
    is_text = torch.ones_like(input_batch) if pad_token_id is None else input_batch != pad_token_id  # [B, T]
    lengths = (is_text * torch.arange(1, T + 1, device=device)).amax(dim=1).clamp(min=1)  # [B]
    return last_token_logits(model, input_batch, lengths), target_batch  # [B, V], [B]


def calc_loss_batch(
    input_batch: Tensor, target_batch: Tensor, model: nn.Module, device: Device, pad_token_id: int | None = PAD
) -> Tensor:
    """Return the mean cross-entropy of a batch; see `target_logits`."""
    return cross_entropy(*target_logits(input_batch, target_batch, model, device, pad_token_id))


@torch.no_grad()
def calc_loss_loader(
    data_loader: Loader, model: nn.Module, device: Device, num_batches: int | None = None,
    pad_token_id: int | None = PAD,
) -> float:  # fmt: skip
    """Return the mean loss of the first batches, or of all; NaN without any."""
    losses = [
        calc_loss_batch(input_batch, target_batch, model, device, pad_token_id).item()
        for input_batch, target_batch in itertools.islice(data_loader, num_batches)
    ]
    return sum(losses) / len(losses) if losses else float("nan")


@torch.no_grad()
def calc_accuracy_loader(
    data_loader: Loader, model: nn.Module, device: Device, num_batches: int | None = None,
    pad_token_id: int | None = PAD,
) -> float:  # fmt: skip
    """Return the fraction of correct classes in the first batches, or in all; NaN without any. Sets eval mode."""
    model.eval()
    correct, total = 0, 0
    for input_batch, target_batch in itertools.islice(data_loader, num_batches):
        logits, targets = target_logits(input_batch, target_batch, model, device, pad_token_id)
        correct += int((logits.argmax(dim=-1) == targets).sum())
        total += len(targets)
    return correct / total if total else float("nan")


def evaluate_model(
    model: nn.Module, train_loader: Loader, val_loader: Loader, device: Device, eval_iter: int | None,
    pad_token_id: int | None = PAD,
) -> tuple[float, float]:  # fmt: skip
    """Return the losses on the first `eval_iter` batches of both loaders, without dropout; then set train mode."""
    model.eval()
    losses = [calc_loss_loader(loader, model, device, eval_iter, pad_token_id) for loader in (train_loader, val_loader)]
    model.train()
    return losses[0], losses[1]


def generate_and_print_sample(model: GPTModel, tokenizer: Codec, device: Device, start_context: str) -> None:
    """Print the 50 likeliest next tokens of a text, on one line."""
    model.eval()
    prompt = text_to_token_ids(start_context, tokenizer).to(device)
    ids = generate_text_simple(model, prompt, max_new_tokens=50, context_size=model.pos_emb.num_embeddings)
    print(token_ids_to_text(ids, tokenizer).replace("\n", " "))
    model.train()


def train_model_simple(  # noqa: PLR0913  # the usual signature
    model: GPTModel, train_loader: Loader, val_loader: Loader, optimizer: torch.optim.Optimizer, device: Device,
    num_epochs: int, eval_freq: int, eval_iter: int | None, start_context: str, tokenizer: Codec,
) -> tuple[list[float], list[float], list[int]]:  # fmt: skip
    """Train a language model with a constant learning rate; print losses every `eval_freq` steps, a sample per epoch.

    Args:
        model: ids [B, T] to logits [B, T, V].
        train_loader: batches of inputs and targets, [B, T] each.
        val_loader: the same, for evaluation.
        optimizer: has the model's parameters.
        device: the model's device.
        num_epochs: passes over `train_loader`.
        eval_freq: steps from an evaluation to the next; the first is after the first step.
        eval_iter: batches per evaluation and loader; None for all.
        start_context: the prompt of the samples.
        tokenizer: the model's tokenizer.

    Returns:
        Training losses, validation losses, and tokens seen so far, one per evaluation.
    """
    train_losses, val_losses, track_tokens_seen = [], [], []
    tokens_seen, global_step = 0, -1
    for epoch in range(num_epochs):
        for input_batch in _train_epoch(model, train_loader, optimizer, device):
            tokens_seen += input_batch.numel()
            global_step += 1
            if global_step % eval_freq == 0:
                train_loss, val_loss = evaluate_model(model, train_loader, val_loader, device, eval_iter)
                _print_losses(epoch, global_step, train_loss, val_loss)
                train_losses.append(train_loss)
                val_losses.append(val_loss)
                track_tokens_seen.append(tokens_seen)
        generate_and_print_sample(model, tokenizer, device, start_context)
    return train_losses, val_losses, track_tokens_seen


def train_classifier_simple(  # noqa: PLR0913  # the usual signature, and the padding
    model: nn.Module, train_loader: Loader, val_loader: Loader, optimizer: torch.optim.Optimizer, device: Device,
    num_epochs: int, eval_freq: int, eval_iter: int | None, pad_token_id: int | None = PAD,
) -> tuple[list[float], list[float], list[float], list[float], int]:  # fmt: skip
    """Train a classifier with a constant learning rate; print losses every `eval_freq` steps, accuracies per epoch.

    Args:
        model: ids [B, T] to logits [B, T, classes].
        train_loader: batches of ids [B, T], padded on the right, and classes [B].
        val_loader: the same, for evaluation.
        optimizer: has the parameters to train.
        device: the model's device.
        num_epochs: passes over `train_loader`.
        eval_freq: steps from an evaluation to the next; the first is after the first step.
        eval_iter: batches per evaluation and loader; None for all.
        pad_token_id: the padding, which is not read; None: read the last position, padding or not.

    Returns:
        Training and validation losses (one per evaluation), accuracies (one per epoch), and examples seen.
    """
    train_losses, val_losses, train_accs, val_accs = [], [], [], []
    examples_seen, global_step = 0, -1
    for epoch in range(num_epochs):
        for input_batch in _train_epoch(model, train_loader, optimizer, device, pad_token_id):
            examples_seen += len(input_batch)
            global_step += 1
            if global_step % eval_freq == 0:
                train_loss, val_loss = evaluate_model(model, train_loader, val_loader, device, eval_iter, pad_token_id)
                _print_losses(epoch, global_step, train_loss, val_loss)
                train_losses.append(train_loss)
                val_losses.append(val_loss)
        train_accs.append(calc_accuracy_loader(train_loader, model, device, eval_iter, pad_token_id))
        val_accs.append(calc_accuracy_loader(val_loader, model, device, eval_iter, pad_token_id))
        print(f"Training accuracy: {train_accs[-1]:.2%} | Validation accuracy: {val_accs[-1]:.2%}")
    return train_losses, val_losses, train_accs, val_accs, examples_seen


def _train_epoch(
    model: nn.Module, train_loader: Loader, optimizer: torch.optim.Optimizer, device: Device,
    pad_token_id: int | None = PAD,
) -> Iterator[Tensor]:  # fmt: skip
    """Take a step on each batch, then yield its ids."""
    model.train()
    for input_batch, target_batch in train_loader:
        optimizer.zero_grad()
        calc_loss_batch(input_batch, target_batch, model, device, pad_token_id).backward()
        optimizer.step()
        yield input_batch


def _print_losses(epoch: int, step: int, train_loss: float, val_loss: float) -> None:
    print(f"Ep {epoch + 1} (Step {step:06d}): Train loss {train_loss:.3f}, Val loss {val_loss:.3f}")
