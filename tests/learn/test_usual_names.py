"""The functions of the usual teaching code: their signatures, and their results against PyTorch and the pipeline."""

from __future__ import annotations

import importlib
import inspect
import io
import math
import re
from pathlib import Path

import pytest
import tiktoken
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

import gpt2core
from gpt2core import learn
from gpt2core.checkpoint.openai import convert
from gpt2core.errors import UserError
from gpt2core.learn import GPTModel, attention
from gpt2core.learn.gpt import CausalSelfAttention
from gpt2core.sources.synthetic import generate_tales
from gpt2core.tokenizer.train import train_bpe
from tests.conftest import ROOT
from tests.learn.same import assert_same, random_weights
from tests.learn.test_gpt import CFG, IDS

PAGE = ROOT / "docs/learn/names.md"
# The arguments that readers write, as published in LLMs-from-scratch; ours may have more after them.
SIGNATURES = {
    "train_model_simple": "model train_loader val_loader optimizer device num_epochs eval_freq eval_iter start_context "
    "tokenizer",
    "train_classifier_simple": "model train_loader val_loader optimizer device num_epochs eval_freq eval_iter",
    "calc_loss_batch": "input_batch target_batch model device",
    "calc_loss_loader": "data_loader model device num_batches",
    "calc_accuracy_loader": "data_loader model device num_batches",
    "evaluate_model": "model train_loader val_loader device eval_iter",
    "generate_and_print_sample": "model tokenizer device start_context",
    "SpamDataset": "csv_file tokenizer max_length pad_token_id",
    "create_balanced_dataset": "df",
    "random_split": "df train_frac validation_frac",
    "InstructionDataset": "data tokenizer",
    "custom_collate_fn": "batch pad_token_id ignore_index allowed_max_length device",
    "format_input": "entry",
    "load_weights_into_gpt": "gpt params",
    "download_and_load_gpt2": "model_size models_dir",
    "text_to_token_ids": "text tokenizer",
    "token_ids_to_text": "token_ids tokenizer",
    "generate": "model idx max_new_tokens context_size temperature top_k eos_id",
    "generate_text_simple": "model idx max_new_tokens context_size",
    "softmax_naive": "x",
    "ExampleDeepNeuralNetwork": "layer_sizes use_shortcut",
    "print_gradients": "model x",
    "classify_review": "text model tokenizer device max_length pad_token_id",
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_a_usual_name_takes_its_usual_arguments(name: str) -> None:
    usual = SIGNATURES[name].split()
    assert list(inspect.signature(getattr(learn, name)).parameters)[: len(usual)] == usual


def test_both_signatures_of_multi_head_attention_exist() -> None:
    assert list(inspect.signature(attention.MultiHeadAttention).parameters) == [
        "d_in", "d_out", "context_length", "dropout", "num_heads", "qkv_bias",
    ]  # fmt: skip
    assert list(inspect.signature(learn.MultiHeadAttention).parameters)[:3] == ["d_model", "num_heads", "dropout"]
    assert list(inspect.signature(learn.MultiHeadAttention.forward).parameters)[1:] == ["query", "key", "value", "mask"]


def test_the_page_maps_every_usual_name_to_what_exists() -> None:
    rows = re.findall(r"^\| `(\w+)`[^|]*\| `gpt2core\.learn\.(\w+)\.(\w+)` \| (.*) \|$", PAGE.read_text(), re.MULTILINE)
    assert set(SIGNATURES) | {"MultiHeadAttention"} <= {usual for usual, *_ in rows}
    for _, module, name, pipeline in rows:
        assert getattr(importlib.import_module(f"gpt2core.learn.{module}"), name).__name__ == name
        for path in re.findall(r"`((?:gpt2core|stages)/[^`]+)`", pipeline):
            assert (ROOT / path).exists(), path


@pytest.mark.parametrize(("d_in", "d_out", "H"), [(6, 6, 3), (3, 8, 2), (5, 4, 4)])
def test_heads_by_one_product_are_pytorchs_attention(d_in: int, d_out: int, H: int) -> None:
    ours = random_weights(attention.MultiHeadAttention(d_in, d_out, 9, 0.0, H, qkv_bias=True))
    x = torch.randn(2, 7, d_in, dtype=torch.float64)

    def theirs(x: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            torch.stack(linear(x).chunk(H, dim=-1), dim=1) for linear in (ours.W_query, ours.W_key, ours.W_value)
        )
        return ours.out_proj(torch.cat(F.scaled_dot_product_attention(q, k, v, is_causal=True).unbind(1), dim=-1))

    assert_same(ours, theirs, [x], [(p, p) for p in ours.parameters()])
    with pytest.raises(UserError, match="5 heads do not divide the width d_out"):
        attention.MultiHeadAttention(d_in, d_out, 9, 0.0, 5)


def test_with_equal_widths_it_is_gpt2s_attention() -> None:
    ours = random_weights(attention.MultiHeadAttention(24, 24, 16, 0.0, num_heads=3, qkv_bias=True))
    gpts = CausalSelfAttention(24, 3, 16).double()
    gpts.load_state_dict(ours.state_dict())
    x = torch.randn(2, 9, 24, dtype=torch.float64)
    torch.testing.assert_close(ours(x), gpts(x), atol=1e-12, rtol=0)


def test_the_naive_softmax_is_pytorchs_until_it_overflows() -> None:
    x = torch.randn(5, 3, dtype=torch.float64)
    assert_same(learn.softmax_naive, lambda x: x.softmax(0), [x])
    assert learn.softmax_naive(torch.tensor([0.0, 89.0])).isnan().any()


def test_printed_gradients_are_autograds(capsys: pytest.CaptureFixture[str]) -> None:
    network = learn.ExampleDeepNeuralNetwork([3, 3, 3, 1], use_shortcut=True)
    x = torch.tensor([[1.0, 0.0, -1.0]])
    learn.print_gradients(network, x)
    printed = [float(number) for number in re.findall(r"mean of (\S+)$", capsys.readouterr().out, re.MULTILINE)]
    F.mse_loss(network(x), torch.tensor([[0.0]])).backward()
    expected = [
        parameter.grad.abs().mean().item() for name, parameter in network.named_parameters() if "weight" in name
    ]
    assert printed == pytest.approx(expected, rel=1e-6) and len(printed) == 3


# Training


def language_batches(n: int, shuffle: bool = False) -> DataLoader:
    ids = torch.randint(280, (n, 9), generator=torch.Generator().manual_seed(n))
    return DataLoader([(row[:-1], row[1:]) for row in ids], batch_size=2, shuffle=shuffle, drop_last=shuffle)


def padded_batches(n: int, pad: int = 279, batch_size: int = 2) -> DataLoader:
    """Texts of unequal length, whose class is whether the last token is odd."""
    generator = torch.Generator().manual_seed(n)
    rows = []
    for _ in range(n):
        ids = torch.randint(279, (int(torch.randint(2, 9, (1,), generator=generator)),), generator=generator)
        rows.append((F.pad(ids, (0, 8 - len(ids)), value=pad), ids[-1] % 2))
    return DataLoader(rows, batch_size=batch_size)


def expected_losses(model: nn.Module, loader: DataLoader, n_batches: int) -> float:
    losses = [F.cross_entropy(model(x).flatten(0, 1), y.flatten()).item() for x, y in list(loader)[:n_batches]]
    return sum(losses) / len(losses)


@pytest.mark.parametrize("num_batches", [1, 2, None, 100])
def test_losses_and_accuracy_are_the_mean_over_batches(num_batches: int | None) -> None:
    model = random_weights(GPTModel(CFG), std=0.3)
    loader = language_batches(5)
    n = min(num_batches or 3, 3)
    assert learn.calc_loss_loader(loader, model, "cpu", num_batches) == pytest.approx(expected_losses(model, loader, n))
    texts = padded_batches(5)
    rows = [(ids[ids != 279], label) for batch in list(texts)[:n] for ids, label in zip(*batch, strict=True)]
    correct = [int(model(ids[None])[0, -1].argmax() == label) for ids, label in rows]
    accuracy = learn.calc_accuracy_loader(texts, model, "cpu", num_batches, pad_token_id=279)
    assert accuracy == pytest.approx(sum(correct) / len(correct))


def test_no_batch_has_no_mean() -> None:
    model = GPTModel(CFG)
    assert math.isnan(learn.calc_loss_loader(DataLoader([]), model, "cpu"))
    assert math.isnan(learn.calc_accuracy_loader(DataLoader([]), model, "cpu"))


def test_a_classifier_is_read_at_the_last_token_or_at_the_last_position() -> None:
    model = random_weights(GPTModel(CFG), std=0.3)
    ids, classes = next(iter(padded_batches(4, batch_size=4)))
    assert (ids[:, -1] == 279).any()
    for pad, logits in (
        (279, torch.stack([model(row[row != 279][None])[0, -1] for row in ids])),
        (None, model(ids)[:, -1]),
    ):
        loss = learn.calc_loss_batch(ids, classes, model, "cpu", pad_token_id=pad)
        assert loss.item() == pytest.approx(F.cross_entropy(logits, classes).item(), rel=1e-9)
    only_padding = torch.full((1, 8), 279)
    loss = learn.calc_loss_batch(only_padding, torch.tensor([1]), model, "cpu", pad_token_id=279)
    assert loss.item() == pytest.approx(F.cross_entropy(model(only_padding)[:, 0], torch.tensor([1])).item())


def test_training_a_language_model_is_pytorchs_loop(capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = train_bpe(generate_tales(0, 2), 280)
    cfg = CFG | {"drop_rate": 0.1}
    models = [GPTModel(cfg).double(), GPTModel(cfg).double()]
    models[1].load_state_dict(models[0].state_dict())
    a, b = (torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1) for model in models)
    train_loader, val_loader = language_batches(7, shuffle=True), language_batches(3)
    torch.manual_seed(5)
    result = learn.train_model_simple(
        models[0], train_loader, val_loader, a, "cpu", num_epochs=2, eval_freq=2, eval_iter=1, start_context="a",
        tokenizer=tokenizer,
    )  # fmt: skip
    torch.manual_seed(5)
    expected: tuple[list[float], list[float], list[int]] = ([], [], [])
    step = 0
    for _ in range(2):
        models[1].train()
        for x, y in train_loader:
            b.zero_grad()
            F.cross_entropy(models[1](x).flatten(0, 1), y.flatten()).backward()
            b.step()
            if step % 2 == 0:
                models[1].eval()
                for losses, loader in zip(expected[:2], (train_loader, val_loader), strict=True):
                    losses.append(expected_losses(models[1], loader, 1))
                models[1].train()
                expected[2].append((step + 1) * 16)
            step += 1
    for ours, theirs in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=0)
    assert result[0] == pytest.approx(expected[0]) and result[1] == pytest.approx(expected[1])
    assert result[2] == expected[2] == [16, 48, 80]
    printed = capsys.readouterr().out.splitlines()
    assert [line[:18] for line in printed if line.startswith("Ep ")] == [
        "Ep 1 (Step 000000)", "Ep 1 (Step 000002)", "Ep 2 (Step 000004)",
    ]  # fmt: skip
    assert f"Train loss {result[0][0]:.3f}, Val loss {result[1][0]:.3f}" in printed[0]


def test_a_classifier_learns_and_is_read_where_it_was_trained() -> None:
    """After training, `classify_review` reads the same token."""
    model = GPTModel(CFG)
    model.out_head = nn.Linear(24, 2)
    loader = padded_batches(24, batch_size=8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    result = learn.train_classifier_simple(
        model, loader, loader, optimizer, "cpu", num_epochs=12, eval_freq=9, eval_iter=3, pad_token_id=279
    )
    train_losses, val_losses, train_accs, val_accs, examples_seen = result
    assert examples_seen == 12 * 24 and len(train_losses) == len(val_losses) == 4 and len(val_accs) == 12
    assert train_losses == val_losses and train_accs == val_accs and train_accs[-1] == 1.0

    class Numbers:
        def encode(self, text: str) -> list[int]:
            return [int(number) for number in text.split()]

    for ids, label in loader.dataset:
        text = " ".join(str(number) for number in ids[ids != 279].tolist())
        answer = learn.classify_review(text, model, Numbers(), "cpu", max_length=8, pad_token_id=279)
        assert answer == ("not spam", "spam")[label]


# Texts


def test_generation_is_greedy_or_drawn_and_stops_at_the_end_of_the_text() -> None:
    model = random_weights(GPTModel(CFG), std=0.3)
    prompt = IDS[:1, :5]
    greedy = learn.generate_text_simple(model, prompt, 8, 16)
    assert torch.equal(learn.generate(model, prompt, 8, 16), greedy)
    assert torch.equal(learn.generate(model, prompt, 8, 16, temperature=2.0, top_k=1), greedy)
    end = greedy[0, 8].item()
    first = greedy[0, 5:].tolist().index(end)
    assert torch.equal(learn.generate(model, prompt, 8, 16, eos_id=end), greedy[:, : 5 + first])
    drawn = learn.generate(model, prompt.expand(4000, -1), 1, 16, temperature=1.5, top_k=3)[:, -1]
    logits, tokens = model(prompt)[0, -1].topk(3)
    frequencies = torch.stack([(drawn == token).double().mean() for token in tokens])
    torch.testing.assert_close(frequencies, (logits / 1.5).softmax(0), atol=0.03, rtol=0)


def test_text_to_ids_and_back_with_the_end_of_text() -> None:
    tokenizer = train_bpe(generate_tales(0, 2), 280)
    ids = learn.text_to_token_ids("long ago", tokenizer)
    assert ids.tolist() == [tokenizer.encode("long ago")]
    assert learn.token_ids_to_text(ids, tokenizer) == learn.token_ids_to_text(ids[0], tokenizer) == "long ago"
    special = tiktoken.Encoding("letters", pat_str=".", mergeable_ranks={b"a": 0}, special_tokens={"<|endoftext|>": 1})
    assert learn.text_to_token_ids("a<|endoftext|>a", special).tolist() == [[0, 1, 0]]


def test_spam_is_read_padded_and_cut(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('Label,Text\n0,"a ""b"", c"\n1,null\n1,0123456789\n', encoding="utf-8")

    class Characters:
        def encode(self, text: str) -> list[int]:
            return [ord(letter) for letter in text]

    dataset = learn.SpamDataset(tmp_path / "a.csv", Characters())
    assert len(dataset) == 3 and dataset.max_length == 10
    rows = ["".join(map(chr, ids[ids != 50256].tolist())) for ids, _ in dataset]
    assert rows == ['a "b", c', "null", "0123456789"]
    assert [label.item() for _, label in dataset] == [0, 1, 1]
    cut = learn.SpamDataset(tmp_path / "a.csv", Characters(), max_length=4, pad_token_id=7)
    assert torch.stack([ids for ids, _ in cut]).shape == (3, 4)
    assert learn.SpamDataset(tmp_path / "a.csv", Characters(), 12, 7)[1][0].tolist()[4:] == [7] * 8


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("label,text\n0,a\n", "has the columns label, text; it needs Label and Text"),
        ("Label,Text\nham,a\n", "a whole number as Label"),
        ("Label,Text\n", "needs rows"),
    ],
)
def test_a_table_without_classes_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.csv").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        learn.SpamDataset(tmp_path / "a.csv", train_bpe(["a b"], 257))


def test_a_balanced_dataset_has_all_spam_and_splits_share_no_row() -> None:
    pandas = pytest.importorskip("pandas")
    table = pandas.read_csv(
        io.StringIO("Label,Text\n" + "".join(f"{'spam' if i % 5 else 'ham'},{i}\n" for i in range(50)))
    )
    table["Label"] = table["Label"].map({"ham": "spam", "spam": "ham"})
    balanced = learn.create_balanced_dataset(table)
    assert balanced["Label"].value_counts().to_dict() == {"ham": 10, "spam": 10}
    assert set(balanced["Text"][balanced["Label"] == "spam"]) == set(range(0, 50, 5))
    parts = learn.random_split(balanced, 0.7, 0.1)
    assert [len(part) for part in parts] == [14, 2, 4]
    assert sorted(text for part in parts for text in part["Text"]) == sorted(balanced["Text"])


@pytest.mark.parametrize("allowed_max_length", [None, 3])
def test_collated_targets_are_the_next_ids_and_one_end(allowed_max_length: int | None) -> None:
    batch = [[0, 1, 2, 3, 4], [5, 6], [7]]
    inputs, targets = learn.custom_collate_fn(batch, pad_token_id=9, allowed_max_length=allowed_max_length)
    assert inputs.shape == targets.shape == (3, allowed_max_length or 5)
    for row, ids in enumerate(batch):
        for position in range(inputs.size(1)):
            assert inputs[row, position] == (ids[position] if position < len(ids) else 9)
            expected = ([*ids[1:], 9][position]) if position < len(ids) else -100
            assert targets[row, position] == expected


# Weights


def test_openais_weights_give_the_logits_of_the_converted_model(tmp_path: Path) -> None:
    settings, params = learn.download_and_load_gpt2("tiny", tmp_path / "gpt2")
    assert set(params) == {"blocks", "b", "g", "wpe", "wte"}
    assert params["wte"].shape == (settings["n_vocab"], settings["n_embd"])
    assert params["blocks"][0]["attn"]["c_attn"]["w"].shape == (settings["n_embd"], 3 * settings["n_embd"])
    convert(tmp_path / "gpt2" / "tiny", tmp_path / "m")
    theirs, tokenizer = gpt2core.load(tmp_path / "m")
    ids = learn.text_to_token_ids("Long ago there was a lamp", tokenizer)
    for tie_weights in (False, True):
        cfg = dict(
            vocab_size=settings["n_vocab"], context_length=settings["n_ctx"], emb_dim=settings["n_embd"],
            n_heads=settings["n_head"], n_layers=settings["n_layer"], drop_rate=0.1, qkv_bias=True,
            tie_weights=tie_weights,
        )  # fmt: skip
        gpt = GPTModel(cfg)
        learn.load_weights_into_gpt(gpt, params)
        torch.testing.assert_close(gpt.eval()(ids), theirs(ids), atol=1e-4, rtol=0)
    with pytest.raises(UserError, match=r"params: tensor 'trf_blocks.0.att.W_key.bias' is not part"):
        learn.load_weights_into_gpt(GPTModel(cfg | {"qkv_bias": False}), params)


def test_a_folder_with_the_files_is_not_fetched_again_and_other_files_are_not_deleted(tmp_path: Path) -> None:
    learn.download_and_load_gpt2("tiny", tmp_path)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "tiny").iterdir()}
    learn.download_and_load_gpt2("tiny", tmp_path)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "tiny").iterdir()} == before
    (tmp_path / "tiny/hparams.json").unlink()
    (tmp_path / "tiny/notes.txt").write_text("mine")
    with pytest.raises(UserError, match="notes.txt"):
        learn.download_and_load_gpt2("tiny", tmp_path)
    with pytest.raises(UserError, match="openai-124M"):
        learn.download_and_load_gpt2("125M", tmp_path)
