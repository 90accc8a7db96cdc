"""Weights that another tool or an attacker wrote: read correctly, or refused with one line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from gpt2core.checkpoint.decoding import load_for_decoding
from gpt2core.checkpoint.model_dir import load_classifier, load_language_model, save_model
from gpt2core.checkpoint.verify import verify
from gpt2core.cli import cli
from gpt2core.errors import UserError
from gpt2core.inference import Sampling, generate_batch
from gpt2core.inference.classify import classify
from gpt2core.model import GPT, GPTClassifier, GPTConfig
from gpt2core.ui.models import find_models
from tests.small import config_and_tokenizer, reconfigure, retensor, save_small_model

HEAD, WTE = "lm_head.weight", "transformer.wte.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_small_model(tmp_path / "model")


def test_a_head_that_is_not_the_embedding_is_refused_or_used(folder: Path) -> None:
    head = torch.randn(load_file(folder / "model.safetensors")[WTE].shape)
    retensor(folder, lambda t: t | {HEAD: head})
    with pytest.raises(UserError, match=f"'{HEAD}' differs from '{WTE}'.*say false there"):
        load_language_model(folder)
    assert not verify(folder).is_whole
    reconfigure(folder, {"tie_word_embeddings": False})  # what the message says
    model, _ = load_language_model(folder)
    assert torch.equal(model.lm_head.weight, head)
    assert verify(folder).is_whole


def test_a_copy_of_the_embedding_as_head_is_read(folder: Path) -> None:
    retensor(folder, lambda t: t | {HEAD: t[WTE].clone()})
    load_language_model(folder)
    assert verify(folder).is_whole


@pytest.mark.parametrize(("prefix", "named"), [("module.", "DistributedDataParallel"), ("_orig_mod.", "torch.compile")])
def test_the_names_of_a_wrapped_model_are_explained(folder: Path, prefix: str, named: str) -> None:
    retensor(folder, lambda t: {prefix + name: tensor for name, tensor in t.items()})
    with pytest.raises(UserError, match=f"'{prefix}'.*{named}"):
        load_language_model(folder)
    (problem,) = verify(folder).problems
    assert named in problem


@pytest.fixture
def padded(tmp_path: Path) -> Path:
    """A model with 64 ids more than its tokenizer has, all of them likelier than any token."""
    sizes, tokenizer = config_and_tokenizer()
    model = GPT(GPTConfig(**sizes.to_dict() | {"vocab_size": sizes.vocab_size + 64, "tie_word_embeddings": False}))
    with torch.no_grad():
        model.transformer.ln_f.bias.fill_(1)
        model.lm_head.weight[sizes.vocab_size :] = 5
    save_model(tmp_path / "padded", model, tokenizer)
    return tmp_path / "padded"


@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(temperature=100), Sampling(1, top_k=3), Sampling(1, None, 0.9)]
)
@pytest.mark.parametrize("n_prompts", [1, 3])
def test_an_id_without_a_token_is_never_generated(padded: Path, sampling: Sampling, n_prompts: int) -> None:
    assert verify(padded).is_whole
    plain, _ = load_language_model(padded)
    for model, tokenizer in (load_for_decoding(padded), load_language_model(padded)):
        assert plain(torch.tensor([[1]])).argmax() >= tokenizer.vocab_size
        prompts = [[1, 2, 3, 4, 1, 2][number:] for number in range(n_prompts)]
        for answer in generate_batch(model, prompts, 20, eos_id=None, sampling=sampling, seed=3, slide=True):
            assert len(answer) == 20
            assert max(answer) < tokenizer.vocab_size


def test_a_padded_model_is_saved_again(padded: Path, tmp_path: Path) -> None:
    model, tokenizer = load_language_model(padded)
    save_model(tmp_path / "again", model, tokenizer)
    for name in ("model.safetensors", "config.json", "vocab.json"):
        assert (tmp_path / "again" / name).read_bytes() == (padded / name).read_bytes()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_model_without_finite_logits_says_so(
    folder: Path, value: float, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    retensor(folder, lambda t: t | {"transformer.ln_f.weight": torch.full_like(t["transformer.ln_f.weight"], value)})
    (tmp_path / "text.txt").write_text("A tale.")
    for dtype in ("float32", "bfloat16"):
        model, _ = load_for_decoding(folder, dtype)
        for sampling in (Sampling(), Sampling(temperature=1)):
            with pytest.raises(UserError, match="not finite"):
                generate_batch(model, [[1]], 3, eos_id=None, sampling=sampling)
    with pytest.raises(UserError, match="not finite"):
        cli.main(["perplexity", str(folder), str(tmp_path / "text.txt")], standalone_mode=False)


def test_a_classifier_without_finite_logits_says_so(tmp_path: Path) -> None:
    sizes, tokenizer = config_and_tokenizer()
    save_model(tmp_path / "c", GPTClassifier(sizes, ("ham", "spam")), tokenizer)
    retensor(tmp_path / "c", lambda t: t | {"score.weight": torch.full_like(t["score.weight"], float("nan"))})
    model, tokenizer = load_classifier(tmp_path / "c")
    with pytest.raises(UserError, match="not finite"):
        classify(model, tokenizer, ["A tale."])


def test_the_page_lists_the_models_next_to_broken_ones(folder: Path, tmp_path: Path) -> None:
    for name in ("fifo", "dangling", "folder", "number"):
        (tmp_path / name).mkdir()
    os.mkfifo(tmp_path / "fifo/config.json")
    (tmp_path / "dangling/config.json").symlink_to(tmp_path / "nowhere")
    (tmp_path / "folder/config.json").mkdir()
    (tmp_path / "number/config.json").write_text("7")
    assert [model.path for model in find_models([tmp_path])] == [folder]


def test_weights_that_are_no_regular_file_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")
    with pytest.raises(UserError, match="regular file"):
        load_language_model(folder)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to("/dev/zero")
    with pytest.raises(UserError, match="regular file"):
        load_language_model(folder)
