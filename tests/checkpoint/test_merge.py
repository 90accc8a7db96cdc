"""Merging of adapters, compared with PEFT, and with what finetune-instruct merges itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import gpt2core
from gpt2core.checkpoint.merge import merge
from gpt2core.checkpoint.model_dir import load_language_model, save_model
from gpt2core.checkpoint.peft_adapter import Adapter, adapter_tensors, save_adapter
from gpt2core.errors import UserError
from gpt2core.model import GPT
from gpt2core.model.lora import TARGETS, add_lora, lora_layers, merge_lora
from tests.small import config_and_tokenizer

IDS = torch.arange(12)[None]  # [1, T]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    sizes, tokenizer = config_and_tokenizer()
    torch.manual_seed(0)
    save_model(tmp_path / "base", GPT(sizes), tokenizer, chat_template="{{ messages }}")
    return tmp_path / "base"


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["c_attn"]},
        {"target_modules": ["c_attn", "c_proj", "c_fc"], "r": 3, "lora_alpha": 7},
        {"target_modules": ["c_attn"], "rank_pattern": {"h.0.attn.c_attn": 2}, "alpha_pattern": {"h.1.*": 40}},
        {"target_modules": "all-linear", "use_rslora": True},
        {"target_modules": ["mlp.c_proj"], "layers_to_transform": [1]},
        {"target_modules": r".*h\.1\.(attn\.c_attn|mlp\.c_fc)", "rank_pattern": {"mlp.c_fc": 5}},
        {"target_modules": ["c_fc"], "init_lora_weights": "gaussian"},
    ],
)
def test_the_merged_model_computes_what_peft_does(tmp_path: Path, base: Path, options: dict[str, Any]) -> None:
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(base)
    theirs = peft.get_peft_model(theirs, peft.LoraConfig(task_type="CAUSAL_LM", **options))
    torch.manual_seed(1)
    for name, parameter in theirs.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    theirs.save_pretrained(tmp_path / "adapter")
    merge(base, tmp_path / "adapter", tmp_path / "merged")
    ours, _ = load_language_model(tmp_path / "merged")
    plain, _ = load_language_model(base)
    with torch.no_grad():
        expected = theirs.eval()(IDS).logits
        torch.testing.assert_close(ours(IDS), expected, atol=1e-4, rtol=1e-4)
        assert (plain(IDS) - expected).abs().max() > 0.1
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(again(IDS).logits, expected, atol=1e-4, rtol=1e-4)
    assert json.loads((tmp_path / "merged/tokenizer_config.json").read_text())["chat_template"] == "{{ messages }}"


def test_an_adapter_that_peft_trained_is_merged(tmp_path: Path, base: Path) -> None:
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(base)
    before = theirs(IDS, labels=IDS).loss.item()
    config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["c_attn", "c_fc"], rank_pattern={"c_fc": 2})
    theirs = peft.get_peft_model(theirs, config).train()
    optimizer = torch.optim.AdamW([p for p in theirs.parameters() if p.requires_grad], lr=0.01)
    for _ in range(20):
        theirs(IDS, labels=IDS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    theirs.save_pretrained(tmp_path / "adapter")
    merge(base, tmp_path / "adapter", tmp_path / "merged")
    ours, _ = load_language_model(tmp_path / "merged")
    with torch.no_grad():
        torch.testing.assert_close(ours(IDS), theirs.eval()(IDS).logits, atol=1e-4, rtol=1e-4)
        assert ours.loss(IDS[:, :-1], IDS[:, 1:]) < before - 0.5


@pytest.mark.parametrize(
    "targets",
    [["attn.c_attn"], ["attn.c_proj"], ["mlp.c_proj", "attn.c_attn"], list(TARGETS)],
    ids=lambda targets: "+".join(targets),
)
def test_peft_computes_what_our_adapter_does(tmp_path: Path, base: Path, targets: list[str]) -> None:
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    model, _ = load_language_model(base)
    add_lora(model, rank=3, alpha=5.0, dropout=0.1, targets=targets)
    torch.manual_seed(2)
    for _, layer in lora_layers(model):
        torch.nn.init.normal_(layer.lora_B)
    save_adapter(tmp_path / "adapter", Adapter(adapter_tensors(model), 3, 5.0, 0.1, targets), str(base))
    plain = transformers.AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        before = plain(IDS).logits
        theirs = peft.PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
        n_layers = sum("lora_A" in name for name, _ in theirs.named_parameters())
        assert n_layers == len(adapter_tensors(model)) / 2 == 2 * len(targets)
        expected = theirs(IDS).logits
        torch.testing.assert_close(model.eval()(IDS), expected, atol=1e-4, rtol=1e-4)
        assert (before - expected).abs().max() > 0.1
        merged = theirs.merge_and_unload()
        merge_lora(model)
        torch.testing.assert_close(model(IDS), merged(IDS).logits, atol=1e-4, rtol=1e-4)
    merged.save_pretrained(tmp_path / "merged")
    ours, _ = gpt2core.load(tmp_path / "merged")
    torch.testing.assert_close(ours(IDS), expected, atol=1e-4, rtol=1e-4)


def test_our_adapter_gives_the_bytes_of_the_merged_model(tmp_path: Path, base: Path) -> None:
    model, tokenizer = load_language_model(base)
    add_lora(model, rank=4, alpha=8.0, dropout=0.0)
    torch.manual_seed(2)
    for _, layer in lora_layers(model):
        torch.nn.init.normal_(layer.lora_B)
    adapter = Adapter(adapter_tensors(model), 4, 8.0, 0.0, ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"))
    save_adapter(tmp_path / "adapter", adapter, str(base))
    merge_lora(model)
    save_model(tmp_path / "expected", model, tokenizer, chat_template="{{ messages }}")
    merge(base, tmp_path / "adapter", tmp_path / "merged")
    for path in (tmp_path / "expected").iterdir():
        assert (tmp_path / "merged" / path.name).read_bytes() == path.read_bytes()


@pytest.fixture
def adapter(tmp_path: Path, base: Path) -> Path:
    model, _ = load_language_model(base)
    add_lora(model, rank=4, alpha=8.0, dropout=0.0, targets=["attn.c_attn"])
    save_adapter(tmp_path / "adapter", Adapter(adapter_tensors(model), 4, 8.0, 0.0, ["attn.c_attn"]), str(base))
    return tmp_path / "adapter"


def edit(folder: Path, **changes: object) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def retensor(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = safetensors.torch.load_file(path)
    change(tensors)
    safetensors.torch.save_file(tensors, path)


def rename(tensors: dict[str, torch.Tensor], old: str, new: str) -> None:
    for name in [name for name in tensors if old in name]:
        tensors[name.replace(old, new)] = tensors.pop(name)


FIRST = "base_model.model.transformer.h.0.attn.c_attn.lora_A.weight"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: edit(d, use_dora=True), "use_dora: True is not supported"),
        (lambda d: edit(d, modules_to_save=["wte"]), r"modules_to_save: \['wte'\] is not supported"),
        (lambda d: edit(d, something_new={"x": 1}), "something_new"),
        (lambda d: edit(d, bias="all"), "bias: Input should be 'none'"),
        (lambda d: edit(d, peft_type="IA3"), "peft_type: Input should be 'LORA'"),
        (lambda d: edit(d, r="4"), "r: Input should be a valid integer"),
        (lambda d: edit(d, r=0), "r: "),
        (lambda d: edit(d, lora_alpha=1e300), "lora_alpha: "),
        (lambda d: edit(d, r=5), r"has lora_A \[4, 16\] .* rank 5 need \[5, 16\]"),
        (lambda d: edit(d, init_lora_weights="pissa_niter_4"), "init_lora_weights"),
        (lambda d: edit(d, rank_pattern={"(a+)+b": 3}), "the pattern"),
        (lambda d: edit(d, rank_pattern={"(": 3}), "is no pattern"),
        (lambda d: retensor(d, lambda t: t.pop(FIRST)), "has only one of lora_A and lora_B"),
        (lambda d: retensor(d, lambda t: t.update({FIRST: torch.zeros(4, 15)})), r"has lora_A \[4, 15\]"),
        (lambda d: retensor(d, lambda t: t.update(beta=torch.zeros(1))), "'beta' is not a matrix of a linear layer's"),
        (lambda d: retensor(d, lambda t: rename(t, "h.0", "h.9")), "'transformer.h.9.attn.c_attn' is no linear layer"),
        (lambda d: retensor(d, lambda t: t.clear()), "has no matrices"),
        (lambda d: (d / "adapter_config.json").unlink(), "a directory that PEFT saved is needed"),
        (lambda d: (d / "adapter_config.json").write_text("[]"), "adapter_config.json"),
        (lambda d: (d / "adapter_model.safetensors").write_bytes(b"1"), "damaged or no safetensors"),
    ],
)
def test_what_is_not_computed_is_refused(
    tmp_path: Path, base: Path, adapter: Path, spoil: Callable[[Path], object], message: str
) -> None:
    spoil(adapter)
    with pytest.raises(UserError, match=message) as error:
        merge(base, adapter, tmp_path / "merged")
    assert len(str(error.value).splitlines()) == 1
    assert not (tmp_path / "merged").exists()


def test_an_adapter_of_the_tied_head_is_refused(tmp_path: Path, base: Path, adapter: Path) -> None:
    head = {f"base_model.model.lm_head.lora_{k}.weight": torch.ones(4, 16) for k in "AB"}
    retensor(adapter, lambda t: t.update(head))
    with pytest.raises(UserError, match="adapts lm_head, which the base shares with its embedding"):
        merge(base, adapter, tmp_path / "merged")


def test_the_sources_are_not_overwritten(base: Path, adapter: Path) -> None:
    for out in (base, adapter, base.parent):
        with pytest.raises(UserError, match="holds the source|is not part of a model directory"):
            merge(base, adapter, out)


def test_an_adapter_alone_names_its_base_and_the_command(base: Path, adapter: Path) -> None:
    with pytest.raises(UserError, match=f"a LoRA adapter of '{base}'; .*: gpt2core merge {base} {adapter} OUT_DIR"):
        gpt2core.load(adapter)
