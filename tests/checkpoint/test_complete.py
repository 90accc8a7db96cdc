"""Complete model directories: what other tools need is there, and they read the same from each file."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import yaml

from gpt2core import prompts
from gpt2core.checkpoint.config_json import read_config_json
from gpt2core.checkpoint.model_card import ModelCard, card_text, write_model_card
from gpt2core.checkpoint.model_dir import load_language_model, save_model
from gpt2core.checkpoint.verify import verify
from gpt2core.errors import UserError
from gpt2core.model import GPT, GPTClassifier
from gpt2core.tasks.instructions import Entry
from gpt2core.tokenizer import Tokenizer
from gpt2core.tokenizer.train import train_bpe, train_char
from gpt2core.training.instruct import entry_nats, make_example
from tests.small import TEXT, config_and_tokenizer

ALL = {
    "config.json", "generation_config.json", "merges.txt", "model.safetensors", "tokenizer.json",
    "tokenizer_config.json", "vocab.json",
}  # fmt: skip
TEXTS = ["The keeper's lamp", "", "  two  spaces\n\n", "Über 東京 🙂", "a<|endoftext|>b"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    sizes, tokenizer = config_and_tokenizer()
    save_model(tmp_path / "m", GPT(sizes), tokenizer, chat_template=prompts.chat_template())
    return tmp_path / "m"


def test_a_directory_has_the_files_that_tools_read(folder: Path, tmp_path: Path) -> None:
    assert {path.name for path in folder.iterdir()} == ALL
    config = json.loads((folder / "config.json").read_text())
    assert config["n_ctx"] == config["n_positions"]
    sizes, tokenizer = config_and_tokenizer()
    save_model(tmp_path / "c", GPTClassifier(sizes, ("ham", "spam")), tokenizer)
    assert {path.name for path in (tmp_path / "c").iterdir()} == ALL - {"generation_config.json"}


def test_another_n_ctx_is_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"n_ctx": 7}))
    with pytest.raises(UserError, match="n_ctx 7 must be n_positions"):
        read_config_json(folder / "config.json")


@pytest.mark.parametrize("kind", ["bpe", "char", "prefix space"])
def test_the_library_tokenizers_reads_the_same_tokens(kind: str, tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    ours = train_char([TEXT, *TEXTS]) if kind == "char" else train_bpe([TEXT], 290)
    if kind == "prefix space":
        ours = Tokenizer(ours.ranks, ours.merges, ours.eot_id, add_prefix_space=True)
    ours.save(tmp_path)
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in TEXTS:
        plain = [text] if kind == "prefix space" else text.split("<|endoftext|>")
        if kind == "prefix space" and "<|endoftext|>" in text:
            continue  # each part between special tokens would get a space, which `encode` does for whole texts
        expected = [i for n, part in enumerate(plain) for i in ([ours.eot_id] if n else []) + ours.encode(part)]
        assert theirs.encode(text).ids == expected
        assert theirs.decode(expected, skip_special_tokens=False) == ours.decode(expected)
    assert theirs.token_to_id("<|endoftext|>") == ours.eot_id


def test_transformers_ends_texts_where_we_do(folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    generation = transformers.GenerationConfig.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert generation.eos_token_id == generation.pad_token_id == tokenizer.eos_token_id


def test_the_chat_template_is_one_that_trainers_can_use(folder: Path) -> None:
    """As TRL does it: a prompt is the start of its conversation, and the rest is what the model learns to write."""
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    prompt = [{"role": "system", "content": "3, 1, 2"}, {"role": "user", "content": "Sort these numbers."}]
    answer = [{"role": "assistant", "content": "1, 2, 3"}]
    question = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template(prompt + answer, tokenize=False)
    assert question == prompts.alpaca("Sort these numbers.", "3, 1, 2")
    assert whole == question + "1, 2, 3<|endoftext|>"
    more = [{"role": "user", "content": "And now?"}]
    assert tokenizer.apply_chat_template(prompt + answer + more, tokenize=False) == whole + prompts.alpaca("And now?")
    ids = tokenizer.apply_chat_template(prompt + answer, return_dict=False)
    assert ids[-1] == tokenizer.eos_token_id


def test_the_card_has_metadata_and_no_surprise(folder: Path) -> None:
    card = ModelCard(
        "A model", "Made of `a|b`.", {"val_loss": 1.5, "n": 12345, "table": [1], "judge": "x|`y`\n<img>"},
        {"lr": 0.001, "init": "random", "none": None}, license="mit",
    )  # fmt: skip
    write_model_card(folder, card)
    text = (folder / "README.md").read_text()
    assert text == card_text(card, read_config_json(folder / "config.json"))
    _, header, body = text.split("---\n", 2)
    assert yaml.safe_load(header) == {
        "license": "mit", "library_name": "transformers", "pipeline_tag": "text-generation",
        "tags": ["gpt2", "gpt2core"],
    }  # fmt: skip
    for cell in ("| val_loss | `1.5` |", "| n | `12,345` |", "| judge | `x/'y' <img>` |", "| init | `random` |"):
        assert cell in body
    assert "Do not use it" in body and "table" not in body
    assert not re.search(r"\d{4}-\d\d-\d\d|/home|/root|/work|torch|python 3", text, re.IGNORECASE)
    assert verify(folder).is_whole


def test_hugging_face_reads_the_card(folder: Path, tmp_path: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")
    sizes, tokenizer = config_and_tokenizer()
    save_model(tmp_path / "c", GPTClassifier(sizes, ("ham", "spam"), "mean"), tokenizer)
    for path, task, library in (
        (folder, "text-generation", "transformers"),
        (tmp_path / "c", "text-classification", "gpt2core"),
    ):
        write_model_card(path, ModelCard("A model", "Made."))
        card = hub.ModelCard.load(path / "README.md")
        assert (card.data.pipeline_tag, card.data.library_name) == (task, library)


def test_the_library_opens_what_the_card_shows(folder: Path) -> None:
    """The example in the card, run."""
    pytest.importorskip("transformers")
    write_model_card(folder, ModelCard("A model", "Made."))
    code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert code
    exec(
        code[1].replace("path/to/this/folder", str(folder)).replace('("One day")', '("One day", max_new_tokens=2)'), {}
    )


@pytest.mark.slow
def test_a_trainer_step_of_transformers_and_back(folder: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    rows = [{"input_ids": tokenizer(TEXT)["input_ids"][:16]} for _ in range(2)]
    arguments = transformers.TrainingArguments(
        str(tmp_path / "run"), max_steps=1, per_device_train_batch_size=2, learning_rate=0.1, report_to=[],
        save_strategy="no", use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    collator = transformers.DataCollatorForLanguageModeling(tokenizer, mlm=False)
    trainer = transformers.Trainer(model, arguments, train_dataset=rows, data_collator=collator)
    trainer.train()
    trainer.save_model(tmp_path / "back")
    tokenizer.save_pretrained(tmp_path / "back")
    import gpt2core

    ours, encoder = gpt2core.load(tmp_path / "back")
    assert isinstance(ours, GPT) and encoder is not None
    ids = torch.tensor([encoder.encode(TEXT)[:16]])
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), model.eval()(ids).logits, atol=1e-4, rtol=1e-4)
    before, _ = gpt2core.load(folder)
    assert isinstance(before, GPT)
    assert not torch.equal(before.lm_head.weight, ours.lm_head.weight)


@pytest.mark.slow
def test_trl_trains_what_finetune_instruct_trains(folder: Path, tmp_path: Path) -> None:
    """Its targets of a prompt and an answer in messages, its first loss, and its model after a step, loaded back."""
    trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
    entry = Entry(instruction="Sort these numbers.", input="3, 1, 2", output="1, 2, 3")
    messages = {
        "prompt": [{"role": "system", "content": entry["input"]}, {"role": "user", "content": entry["instruction"]}],
        "completion": [{"role": "assistant", "content": entry["output"]}],
    }
    ours, tokenizer = load_language_model(folder)
    example = make_example(entry, tokenizer, ours.config.n_positions, mask_prompt=True)
    arguments = trl.SFTConfig(
        str(tmp_path / "run"), max_steps=1, learning_rate=0.1, max_length=ours.config.n_positions, bf16=False,
        use_cpu=True, save_strategy="no", report_to=[], disable_tqdm=True,
    )  # fmt: skip
    trainer = trl.SFTTrainer(str(folder), args=arguments, train_dataset=datasets.Dataset.from_list([messages]))
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["input_ids"][0, :-1].tolist() == example.ids
    assert batch["labels"][0, 1:].tolist() == example.targets
    expected = entry_nats(ours, [example], tokenizer.eot_id)[0] / example.n_target_tokens
    assert trainer.train().training_loss == pytest.approx(expected, rel=1e-4)

    trainer.save_model(tmp_path / "back")
    trained, _ = load_language_model(tmp_path / "back")
    ids = torch.tensor([example.ids])
    with torch.no_grad():
        torch.testing.assert_close(trained(ids), trainer.model.eval()(ids).logits, atol=1e-4, rtol=1e-4)
        assert not torch.equal(trained(ids), ours(ids))
