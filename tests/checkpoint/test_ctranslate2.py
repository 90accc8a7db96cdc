"""Model directories converted by CTranslate2's own converter, and run by its engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gpt2core.checkpoint.model_dir import load_language_model, save_model
from gpt2core.inference import generate_batch
from gpt2core.model import GPT, GPTConfig
from gpt2core.tokenizer import Tokenizer, read_bpe
from gpt2core.tokenizer.train import train_bpe, train_char
from tests.small import TEXT

pytestmark = pytest.mark.slow
PROMPTS = ["The keeper", "lamp was lit. ", "the harbour, and", "T"]
N_NEW = 20


def make_tokenizer(kind: str, mirror: Path) -> Tokenizer:
    if kind == "characters":
        return train_char([TEXT])
    if kind == "our own BPE":
        return train_bpe([TEXT], 280)
    return read_bpe(mirror / "gpt2-bpe/encoder.json", mirror / "gpt2-bpe/vocab.bpe")


@pytest.fixture(params=["our own BPE", "characters", "GPT-2's"])
def folder(request: pytest.FixtureRequest, mirror: Path, tmp_path: Path) -> Path:
    """A model whose answer to the first prompt ends before `N_NEW` tokens."""
    tokenizer = make_tokenizer(request.param, mirror)
    torch.manual_seed(0)
    config = GPTConfig(tokenizer.vocab_size, n_positions=64, n_embd=32, n_layer=2, n_head=2, initializer_range=0.3)
    model = GPT(config).eval()
    prompt = tokenizer.encode(PROMPTS[0])
    (answer,) = generate_batch(model, [prompt], N_NEW, eos_id=None)
    new = next(token for token in answer[1:] if token not in (*prompt, answer[0]))
    swapped = [new, tokenizer.eot_id]
    with torch.no_grad():  # the head's weights too, which are tied: the answer has the end in place of `new`
        model.transformer.wte.weight[swapped] = model.transformer.wte.weight[swapped[::-1]]
    save_model(tmp_path / "m", model, tokenizer)
    return tmp_path / "m"


def converted(folder: Path) -> Any:
    """Return CTranslate2's generator of a model directory, in float32."""
    ctranslate2 = pytest.importorskip("ctranslate2")
    converters = pytest.importorskip("ctranslate2.converters")
    pytest.importorskip("transformers")
    out = converters.TransformersConverter(str(folder)).convert(str(folder.with_name("converted")))
    return ctranslate2.Generator(out, device="cpu", compute_type="float32", intra_threads=1)


def test_ctranslate2_writes_the_same_greedy_tokens(folder: Path) -> None:
    theirs = converted(folder)
    tokenizer_of_theirs = pytest.importorskip("transformers").AutoTokenizer.from_pretrained(folder)
    ours, tokenizer = load_language_model(folder)
    prompts = [tokenizer.encode(text) for text in PROMPTS]
    expected = generate_batch(ours, prompts, N_NEW, eos_id=tokenizer.eot_id)
    assert 0 < len(expected[0]) < N_NEW and max(map(len, expected)) == N_NEW

    tokens = [tokenizer_of_theirs.convert_ids_to_tokens(tokenizer_of_theirs(text)["input_ids"]) for text in PROMPTS]
    # In a batch of unequal prompts, CTranslate2 counts what is longer than the shortest one as new tokens.
    options = dict(max_length=N_NEW, sampling_topk=1, include_prompt_in_result=False, max_batch_size=1)
    results = theirs.generate_batch(tokens, **options)
    assert [result.sequences_ids[0] for result in results] == expected

    for ids in prompts:
        logits = torch.from_numpy(np.array(theirs.forward_batch([ids])))  # [1, T, V]
        torch.testing.assert_close(logits, ours(torch.tensor([ids])), atol=1e-4, rtol=1e-4)
