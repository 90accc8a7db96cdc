"""Windows over a text: the model reads a window, and its targets are the same window shifted by one token."""

from __future__ import annotations

from typing import Protocol

import tiktoken
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from gpt2core.errors import UserError


class Encoder(Protocol):
    """Anything with `encode`: the tokenizers of this part and of the pipeline, or tiktoken's."""

    def encode(self, text: str, /) -> list[int]: ...


class Codec(Encoder, Protocol):
    """A tokenizer in both directions."""

    def decode(self, ids: list[int], /) -> str: ...


class GPTDatasetV1(Dataset[tuple[Tensor, Tensor]]):
    """Pairs of a window and the window shifted by one token.

    Args:
        txt: the text.
        tokenizer: encodes the text.
        max_length: tokens per window.
        stride: tokens from the start of a window to the start of the next; less than `max_length` makes them overlap.
    """

    def __init__(self, txt: str, tokenizer: Encoder, max_length: int, stride: int):
        ids = torch.tensor(tokenizer.encode(txt))  # [n]
        if len(ids) <= max_length:
            raise UserError(f"the text has {len(ids)} tokens; a window of max_length {max_length} needs one more")
        starts = range(0, len(ids) - max_length, stride)
        self.input_ids = [ids[start : start + max_length] for start in starts]
        self.target_ids = [ids[start + 1 : start + max_length + 1] for start in starts]

    def __len__(self) -> int:
        return len(self.input_ids)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return window number `index` and its targets: [max_length] and [max_length], int64."""
        return self.input_ids[index], self.target_ids[index]


def create_dataloader_v1(
    txt: str,
    batch_size: int = 4,
    max_length: int = 256,
    stride: int = 128,
    shuffle: bool = True,
    drop_last: bool = True,
    num_workers: int = 0,
    tokenizer: Encoder | None = None,
) -> DataLoader[tuple[Tensor, Tensor]]:
    """Return a loader of batches of windows and their targets, [B, T] and [B, T].

    Args:
        txt: see `GPTDatasetV1`.
        batch_size: B.
        max_length: T; see `GPTDatasetV1`.
        stride: see `GPTDatasetV1`.
        shuffle: windows in random order, drawn from torch's global generator.
        drop_last: skip a last batch that is not full.
        num_workers: number of loading processes; 0 for none.
        tokenizer: GPT-2's if absent, which tiktoken downloads when it is first used.
    """
    dataset = GPTDatasetV1(txt, tokenizer or gpt2_encoding(), max_length, stride)
    return DataLoader(dataset, batch_size, shuffle=shuffle, drop_last=drop_last, num_workers=num_workers)


def gpt2_encoding() -> tiktoken.Encoding:
    """Return GPT-2's own tokenizer. Raises UserError if its vocabulary cannot be fetched."""
    try:
        return tiktoken.get_encoding("gpt2")
    except OSError as error:  # requests' errors are OSErrors
        raise UserError(f"GPT-2's vocabulary could not be fetched ({error}); give a tokenizer of your own") from None
