"""Judges in a directory: a GPT-2 by our engine beside transformers' own, and another architecture by transformers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import gpt2core
from gpt2core import prompts
from gpt2core.checkpoint.model_dir import save_model
from gpt2core.errors import UserError
from gpt2core.evaluation.judges import Item
from gpt2core.evaluation.judges.language_model import LanguageModelJudge, NoReply
from gpt2core.evaluation.judges.local import MAX_REPLY_TOKENS, GPT2Chat, TransformersChat, local_chat
from gpt2core.model import GPT, GPTClassifier, GPTConfig
from gpt2core.tokenizer.train import train_bpe

transformers = pytest.importorskip("transformers", reason="transformers is missing: make peers")

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}:{% endif %}"
TALK = [{"role": "user", "content": "Score the lamp."}]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`gpt2` (random, as models/instruct is written), `classifier`, and `llama` with a chat template."""
    root = tmp_path_factory.mktemp("judges")
    torch.manual_seed(0)
    tokenizer = train_bpe(["The keeper took the lamp to the tower at 5 o'clock.\n" * 9], 270)
    config = GPTConfig(tokenizer.vocab_size, n_positions=512, n_embd=32, n_layer=1, n_head=2, initializer_range=0.5)
    save_model(root / "gpt2", GPT(config), tokenizer, chat_template=prompts.chat_template())
    save_model(root / "classifier", GPTClassifier(config, ("a", "b")), tokenizer)
    llama = transformers.LlamaConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=4096, initializer_range=0.5,
        bos_token_id=None, eos_token_id=tokenizer.eot_id,
    )  # fmt: skip
    transformers.LlamaForCausalLM(llama).save_pretrained(root / "llama")
    theirs = transformers.AutoTokenizer.from_pretrained(root / "gpt2")
    theirs.chat_template = TEMPLATE
    theirs.save_pretrained(root / "llama")
    return root


def greedy(folder: Path, prompt: str) -> str:
    """What transformers itself answers."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    out = model.generate(ids, do_sample=False, max_new_tokens=MAX_REPLY_TOKENS, pad_token_id=tokenizer.eos_token_id)
    return tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


def test_a_gpt2_answers_as_in_transformers(folders: Path) -> None:
    chat = local_chat(folders / "gpt2")
    assert isinstance(chat, GPT2Chat)
    reply = chat.reply(TALK)
    assert reply
    assert reply == greedy(folders / "gpt2", prompts.alpaca("Score the lamp."))


def test_a_gpt2_is_asked_in_the_form_that_it_keeps(folders: Path, tmp_path: Path) -> None:
    model, tokenizer = gpt2core.load(folders / "gpt2")
    save_model(tmp_path / "phi3", model, tokenizer, chat_template=prompts.chat_template(prompts.phi3))
    reply = local_chat(tmp_path / "phi3").reply(TALK)
    assert reply == greedy(folders / "gpt2", "<|user|>\nScore the lamp.<|end|>\n<|assistant|>\n")
    assert reply != local_chat(folders / "gpt2").reply(TALK)


def test_another_model_is_asked_by_its_chat_template(folders: Path) -> None:
    chat = local_chat(folders / "llama")
    assert isinstance(chat, TransformersChat)
    reply = chat.reply([*TALK, {"role": "assistant", "content": "well"}, {"role": "user", "content": "a number"}])
    assert reply
    assert reply == greedy(folders / "llama", "<user>Score the lamp.<assistant>well<user>a number:")


def test_its_replies_are_kept_until_its_weights_change(folders: Path, tmp_path: Path) -> None:
    items = [Item("Name it.", "", "lamp", response) for response in ("lamp", "tower")]
    model_dir = tmp_path / "model"
    shutil.copytree(folders / "llama", model_dir)

    def kept() -> int:
        with pytest.raises(UserError, match="not a score"):  # random weights say nothing sensible
            LanguageModelJudge(local_chat(model_dir), tmp_path / "replies", min_coverage=0.0).score(items)
        (path,) = (tmp_path / "replies").glob("transformers-model-*.jsonl")
        return len(path.read_text().splitlines())

    assert kept() == 4
    assert kept() == 4
    other = transformers.AutoModelForCausalLM.from_pretrained(model_dir)
    with torch.no_grad():
        other.lm_head.weight[0, 0] += 1
    other.save_pretrained(model_dir)
    assert kept() == 8


def test_a_question_beyond_the_context_is_one_that_failed(folders: Path) -> None:
    long = [{"role": "user", "content": "tower " * 2000}]
    for name in ("gpt2", "llama"):
        with pytest.raises(NoReply, match="does not fit"):
            local_chat(folders / name).reply(long)


def spoil(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_what_cannot_judge_is_refused(folders: Path, tmp_path: Path) -> None:
    def refused(folder: Path) -> str:
        with pytest.raises(UserError) as caught:
            local_chat(folder)
        assert str(folder) in str(caught.value)
        return str(caught.value)

    assert "no config.json" in refused(tmp_path / "nothing")
    assert "language model" in refused(folders / "classifier")
    shutil.copytree(folders / "llama", tmp_path / "plain")
    for path in tmp_path.glob("plain/chat_template*"):
        path.unlink()
    spoil(tmp_path / "plain/tokenizer_config.json", chat_template=None)
    assert "no chat template" in refused(tmp_path / "plain")
    shutil.copytree(folders / "llama", tmp_path / "odd")
    spoil(tmp_path / "odd/config.json", model_type="nonsense")
    assert "transformers cannot open it" in refused(tmp_path / "odd")
