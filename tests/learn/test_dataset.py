from __future__ import annotations

from pathlib import Path

import pytest
import requests
import tiktoken
import torch

from gpt2core.errors import UserError
from gpt2core.learn import GPTDatasetV1, create_dataloader_v1
from gpt2core.tokenizer import Tokenizer, read_bpe
from gpt2core.tokenizer.train import train_char

TEXT = "abcdefghijklmnopqrstuvwxyz"


@pytest.fixture
def letters() -> Tokenizer:
    return train_char([TEXT])


@pytest.mark.parametrize(("max_length", "stride"), [(4, 4), (4, 1), (5, 3), (25, 1)])
def test_targets_are_the_next_tokens_and_every_window_that_fits_is_there(
    letters: Tokenizer, max_length: int, stride: int
) -> None:
    dataset = GPTDatasetV1(TEXT, letters, max_length, stride)
    for number, (inputs, targets) in enumerate(dataset):
        start = number * stride
        assert letters.decode(inputs.tolist()) == TEXT[start : start + max_length]
        assert letters.decode(targets.tolist()) == TEXT[start + 1 : start + max_length + 1]
    assert len(dataset) * stride + max_length >= len(TEXT) > (len(dataset) - 1) * stride + max_length


def test_windows_that_touch_read_each_token_once(letters: Tokenizer) -> None:
    dataset = GPTDatasetV1(TEXT, letters, max_length=5, stride=5)
    assert torch.cat([inputs for inputs, _ in dataset]).tolist() == letters.encode(TEXT[:25])


def test_too_short_a_text_is_refused(letters: Tokenizer) -> None:
    with pytest.raises(UserError, match="26 tokens; a window of max_length 26 needs one more"):
        GPTDatasetV1(TEXT, letters, 26, 1)


def test_the_loader_makes_batches_in_order_or_shuffled(letters: Tokenizer) -> None:
    options = dict(batch_size=2, max_length=4, stride=4, tokenizer=letters)
    inputs, targets = next(iter(create_dataloader_v1(TEXT, shuffle=False, **options)))
    assert [letters.decode(row) for row in inputs.tolist()] == ["abcd", "efgh"]
    assert [letters.decode(row) for row in targets.tolist()] == ["bcde", "fghi"]
    torch.manual_seed(0)
    starts = torch.cat([inputs for inputs, _ in create_dataloader_v1(TEXT, **options)])[:, 0].tolist()
    assert starts != sorted(starts) == letters.encode("aeimqu")
    assert len(create_dataloader_v1(TEXT, **(options | {"batch_size": 4}))) == 1
    assert len(create_dataloader_v1(TEXT, **(options | {"batch_size": 4}), drop_last=False)) == 2


def test_without_a_tokenizer_it_is_gpt2s(mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpt2 = read_bpe(mirror / "gpt2-bpe" / "encoder.json", mirror / "gpt2-bpe" / "vocab.bpe")
    monkeypatch.setattr(tiktoken, "get_encoding", {"gpt2": gpt2}.__getitem__)
    verdict = (mirror / "the-verdict" / "the-verdict.txt").read_text(encoding="utf-8")
    inputs, _ = next(iter(create_dataloader_v1(verdict, batch_size=1, max_length=4, stride=1, shuffle=False)))
    assert inputs.tolist() == [gpt2.encode(verdict)[:4]]


def test_a_vocabulary_that_cannot_be_fetched_is_said_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(name: str) -> None:
        raise requests.ConnectionError("no route to host")

    monkeypatch.setattr(tiktoken, "get_encoding", no_network)
    with pytest.raises(UserError, match="could not be fetched .no route to host.; give a tokenizer"):
        create_dataloader_v1(TEXT)
