"""Tokenizers as other tools write them: the ids of transformers' AutoTokenizer, or one line that names the entry."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gpt2core.errors import UserError
from gpt2core.tokenizer import END_OF_TEXT, Tokenizer, load_tokenizer, read_bpe
from gpt2core.tokenizer.train import train_bpe, train_char

TEXT = "The keeper took a lamp to the tower; it's lit.  Über 東京 🙂\n\n\tThe end, the end."
SAMPLES = ["Hello world", " Hello", "\nHello", "", "a  b", "The lamp's 東京", "é"]
Change = Callable[[dict[str, Any]], object]
ADDED = {"id": 300, "content": "<|im_start|>", "single_word": False, "lstrip": False, "rstrip": False}


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return train_bpe([TEXT], 290)


@pytest.fixture
def folder(bpe: Tokenizer, tmp_path: Path) -> Path:
    """A directory as transformers writes it: tokenizer.json and tokenizer_config.json."""
    transformers = pytest.importorskip("transformers")
    bpe.save(tmp_path / "ours")
    (tmp_path / "ours/config.json").write_text('{"model_type": "gpt2"}')
    transformers.AutoTokenizer.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    (tmp_path / "theirs/config.json").write_text('{"model_type": "gpt2"}')
    return tmp_path / "theirs"


def change(path: Path, edit: Change) -> None:
    """Edit a JSON file; one that does not exist starts as an empty object."""
    content = json.loads(path.read_text()) if path.exists() else {}
    edit(content)
    path.write_text(json.dumps(content))


def as_template(single: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a post-processor for texts."""
    eot = {"id": END_OF_TEXT, "ids": [289], "tokens": [END_OF_TEXT]}
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {END_OF_TEXT: eot},
    }


SEQUENCE, EOT = {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": END_OF_TEXT, "type_id": 0}}


@pytest.mark.parametrize(
    "edits",
    [
        {},
        {"tokenizer_config.json": lambda c: c.update(add_prefix_space=True),
         "tokenizer.json": lambda c: c["pre_tokenizer"].update(add_prefix_space=True)},
        {"tokenizer_config.json": lambda c: c.update(tokenizer_class="PreTrainedTokenizerFast")},
        {"tokenizer.json": lambda c: c.update(post_processor=as_template([SEQUENCE]))},
        {"tokenizer.json": lambda c: c.update(post_processor=None)},
        {"tokenizer.json": lambda c: c["model"].update(ignore_merges=True)},
        {"tokenizer.json": lambda c: c.update(
            truncation={"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0})},
        {"tokenizer.json": lambda c: c["model"].update(merges=[" ".join(m) for m in c["model"]["merges"]])},
    ],
)  # fmt: skip
def test_what_is_read_is_encoded_as_transformers_does(folder: Path, edits: dict[str, Change]) -> None:
    transformers = pytest.importorskip("transformers")
    for name, edit in edits.items():
        change(folder / name, edit)
    theirs, ours = transformers.AutoTokenizer.from_pretrained(folder), load_tokenizer(folder)
    for text in [*SAMPLES, TEXT]:
        assert ours.encode(text) == theirs(text)["input_ids"]
        assert ours.decode(ours.encode(text)) == theirs.decode(theirs(text)["input_ids"])


def test_a_prefix_space_without_tokenizer_json_is_computed_and_saved(bpe: Tokenizer, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    bpe.save(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    change(tmp_path / "tokenizer_config.json", lambda c: c.update(add_prefix_space=True))
    load_tokenizer(tmp_path).save(tmp_path / "again")
    (tmp_path / "again/config.json").write_text('{"model_type": "gpt2"}')
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "again")
    for text in SAMPLES:
        assert load_tokenizer(tmp_path / "again").encode(text) == theirs(text)["input_ids"]
    assert load_tokenizer(tmp_path).encode("Hello") == bpe.encode(" Hello") != bpe.encode("Hello")


@pytest.mark.parametrize(
    ("name", "edit", "key"),
    [
        ("tokenizer_config.json", lambda c: c.update(add_bos_token=True), "add_bos_token"),
        ("tokenizer_config.json", lambda c: c.update(add_eos_token=True), "add_eos_token"),
        ("tokenizer_config.json", lambda c: c.update(errors="strict"), "errors"),
        ("tokenizer_config.json", lambda c: c.update(pad_token="<pad>"), "pad_token"),
        ("tokenizer_config.json", lambda c: c.update(eos_token={"content": "<end>"}), "eos_token"),
        ("tokenizer_config.json", lambda c: c.update(bos_token={"content": END_OF_TEXT, "lstrip": True}), "bos_token"),
        ("tokenizer_config.json", lambda c: c.update(mask_token=7), "mask_token"),
        ("tokenizer_config.json", lambda c: c.update(extra_special_tokens=["<|im_end|>"]), "extra_special_tokens"),
        ("tokenizer_config.json", lambda c: c.update(extra_special_tokens={"image": "<i>"}), "extra_special_tokens"),
        ("tokenizer_config.json", lambda c: c.update(added_tokens_decoder={"300": ADDED}), "added_tokens_decoder"),
        ("tokenizer_config.json", lambda c: c.update(tokenizer_class="T5Tokenizer"), "tokenizer_class"),
        ("tokenizer_config.json", lambda c: c.update(add_prefix_space=True), "add_prefix_space"),
        ("tokenizer_config.json", lambda c: c.update(add_prefix_space="no"), "add_prefix_space"),
        ("special_tokens_map.json", lambda c: c.update(additional_special_tokens=["<x>"]), "additional_special"),
        ("special_tokens_map.json", lambda c: c.update(cls_token="<cls>"), "cls_token"),
        ("added_tokens.json", lambda c: c.update({"<|im_start|>": 300}), "im_start"),
        ("tokenizer.json", lambda c: c["added_tokens"].append(ADDED), "added_tokens.1"),
        ("tokenizer.json", lambda c: c["added_tokens"].append(7), "added_tokens.1"),
        ("tokenizer.json", lambda c: c["added_tokens"][0].update(rstrip=True), "added_tokens.0.rstrip"),
        ("tokenizer.json", lambda c: c.update(added_tokens={}), "added_tokens"),
        ("tokenizer.json", lambda c: c.update(normalizer={"type": "Lowercase"}), "normalizer"),
        ("tokenizer.json", lambda c: c.update(pre_tokenizer={"type": "Whitespace"}), "pre_tokenizer.type"),
        ("tokenizer.json", lambda c: c.update(pre_tokenizer=None), "pre_tokenizer"),
        ("tokenizer.json", lambda c: c["pre_tokenizer"].update(use_regex=False), "pre_tokenizer.use_regex"),
        ("tokenizer.json", lambda c: c["pre_tokenizer"].update(add_prefix_space=True), "pre_tokenizer.add_prefix"),
        ("tokenizer.json", lambda c: c.update(post_processor=as_template([EOT, SEQUENCE])), "post_processor.single"),
        ("tokenizer.json", lambda c: c.update(post_processor=as_template([EOT])), "post_processor.single"),
        ("tokenizer.json", lambda c: c.update(post_processor={"type": "BertProcessing"}), "post_processor"),
        ("tokenizer.json", lambda c: c.update(decoder={"type": "WordPiece"}), "decoder.type"),
        ("tokenizer.json", lambda c: c.update(decoder=None), "decoder"),
        ("tokenizer.json", lambda c: c["model"].update(type="WordLevel"), "model.type"),
        ("tokenizer.json", lambda c: c["model"].update(dropout=0.1), "model.dropout"),
        ("tokenizer.json", lambda c: c["model"].update(continuing_subword_prefix="##"), "model.continuing"),
        ("tokenizer.json", lambda c: c["model"].update(end_of_word_suffix="</w>"), "model.end_of_word"),
        ("tokenizer.json", lambda c: c["model"].update(byte_fallback=True), "model.byte_fallback"),
        ("tokenizer.json", lambda c: c["model"].update(vocab=[]), "model.vocab"),
        ("tokenizer.json", lambda c: c["model"].update(merges=[7]), "model.merges.0"),
        ("tokenizer.json", lambda c: c["model"].update(merges=[["a", "b", "c"]]), "merge 0"),
        ("tokenizer.json", lambda c: c["model"].pop("merges"), "model.merges"),
        ("tokenizer.json", lambda c: c.update(sparkles=1), "sparkles"),
    ],
)  # fmt: skip
def test_what_would_change_the_tokens_is_refused(folder: Path, name: str, edit: Change, key: str) -> None:
    change(folder / name, edit)
    with pytest.raises(UserError) as error:
        load_tokenizer(folder)
    message = str(error.value)
    assert name in message or "tokenizer.json" in message
    assert key in message
    assert len(message.splitlines()) == 1
    assert len(message) < 400


def test_tables_that_contradict_each_other_are_refused(folder: Path, bpe: Tokenizer) -> None:
    bpe.save(folder)
    assert load_tokenizer(folder).ranks == bpe.ranks
    train_bpe([TEXT[:-9]], 285).save(folder / "other")
    (folder / "other/vocab.json").replace(folder / "vocab.json")
    with pytest.raises(UserError, match=r"tokenizer\.json: has other tokens or merges than vocab\.json"):
        load_tokenizer(folder)


def write(folder: Path, merges: list[str], tokens: list[str]) -> tuple[Path, Path]:
    """Write a vocabulary of letters, then `tokens`, and its merges."""
    vocab = {token: i for i, token in enumerate(["a", "b", "c", "d", *tokens, END_OF_TEXT])}
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    return folder / "vocab.json", folder / "merges.txt"


@pytest.mark.parametrize(
    ("merges", "tokens", "message"),
    [
        (["a b"], ["ab", "cd"], "merges.txt: no merge makes the token of id 5; if it is an added token"),
        (["a b", "b c", "a bc"], ["ab", "bc", "abc"], "line 4: is never applied: other merges come first"),
        (["b c", "a b"], ["ab", "bc"], "line 3: makes id 4 after id 5; the order of merges"),
        (["a b", "a b"], ["ab"], "line 3: makes the token of id 4 a second time"),
        (["ab c", "a b"], ["abc", "ab"], "line 2: joins a token that no earlier merge makes"),
        (["a a", "a aa"], ["aa", "aaa"], "line 3: is never applied"),
    ],
)
def test_tables_that_ids_do_not_describe_are_refused(
    tmp_path: Path, merges: list[str], tokens: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        read_bpe(*write(tmp_path, merges, tokens))


def test_random_tables_are_refused_or_encoded_as_tokenizers_does(tmp_path: Path) -> None:
    """Compare 400 random tables of merges with the library `tokenizers` on all short texts."""
    tokenizers = pytest.importorskip("tokenizers")
    draw = random.Random(0)
    texts = ["".join(letters) for n in range(1, 7) for letters in itertools.product("ab", repeat=n)]
    n_read = 0
    for _ in range(400):
        tokens, merges = ["a", "b", "c", "d"], []
        for _ in range(draw.randrange(1, 6)):
            left, right = draw.choice(tokens), draw.choice(tokens)
            if left + right not in tokens and set(left + right) <= set("ab"):
                tokens.append(left + right)
                merges.append(f"{left} {right}")
        vocab_path, merges_path = write(tmp_path, merges, tokens[4:])
        theirs = tokenizers.Tokenizer(tokenizers.models.BPE.from_file(str(vocab_path), str(merges_path)))
        reached = all(theirs.encode(token).ids == [i] for i, token in enumerate(tokens))
        try:
            ours = read_bpe(vocab_path, merges_path)
        except UserError:
            assert not reached  # the reason to refuse a table: one of its tokens is never used
            continue
        n_read += 1
        assert reached
        for text in texts:
            assert ours.encode(text) == theirs.encode(text).ids, (merges, text)
    assert 50 < n_read < 400


def test_a_character_table_may_have_its_ids_in_any_order(tmp_path: Path) -> None:
    tokenizer = train_char([TEXT])
    tokenizer.save(tmp_path)
    assert load_tokenizer(tmp_path).encode("東京 🙂") == tokenizer.encode("東京 🙂")
