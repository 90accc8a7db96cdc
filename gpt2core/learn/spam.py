"""Spam messages as the usual teaching code prepares them: as many of each class, split at random, padded.

Needs pandas: `pip install 'gpt2core[pipeline]'`.
"""

from __future__ import annotations

import os

import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import Dataset

from gpt2core.errors import UserError
from gpt2core.learn.dataset import Encoder


def create_balanced_dataset(df: pd.DataFrame) -> pd.DataFrame:
    """Return the spam and an equally large random draw of the ham, from a column `Label` of "ham" and "spam"."""
    spam = df[df["Label"] == "spam"]
    ham = df[df["Label"] == "ham"].sample(len(spam), random_state=123)
    return pd.concat([ham, spam])


def random_split(
    df: pd.DataFrame, train_frac: float, validation_frac: float
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Return training, validation, and test rows in random order; the test rows are the rest.

    Messages that occur twice may be in two splits; `gpt2core.tasks.labeled_texts` prevents that.
    """
    shuffled = df.sample(frac=1, random_state=123).reset_index(drop=True)
    train_end = int(len(df) * train_frac)
    validation_end = train_end + int(len(df) * validation_frac)
    return shuffled[:train_end], shuffled[train_end:validation_end], shuffled[validation_end:]


class SpamDataset(Dataset[tuple[Tensor, Tensor]]):
    """Pairs of ids [max_length] and a class, from a CSV file with the columns `Label` (a number) and `Text`.

    Args:
        csv_file: the file.
        tokenizer: encodes the texts.
        max_length: tokens per text, which is cut or padded on the right; None: as many as the longest text has.
        pad_token_id: token id of the padding.
    """

    def __init__(
        self, csv_file: str | os.PathLike[str], tokenizer: Encoder, max_length: int | None = None,
        pad_token_id: int = 50256,
    ):  # fmt: skip
        self.data = pd.read_csv(csv_file, keep_default_na=False)  # the text "null" is a text
        if not {"Label", "Text"} <= set(self.data.columns):
            columns = ", ".join(map(str, self.data.columns))
            raise UserError(f"{csv_file}: has the columns {columns}; it needs Label and Text")
        if self.data.empty or not pd.api.types.is_integer_dtype(self.data["Label"]):
            raise UserError(f"{csv_file}: needs rows with a whole number as Label, such as 0 for ham and 1 for spam")
        ids = [tokenizer.encode(text) for text in self.data["Text"].astype(str)]
        self.max_length = max_length or max(map(len, ids))
        self.encoded_texts = [text[: self.max_length] + [pad_token_id] * (self.max_length - len(text)) for text in ids]

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return the ids [max_length] and the class [] of message number `index`, int64."""
        return torch.tensor(self.encoded_texts[index]), torch.tensor(int(self.data["Label"].iloc[index]))
