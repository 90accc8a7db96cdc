"""Instruction tuning: LoRA and its adapter in the real PEFT, batches that do not leak, micro-batches, prompts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F

import gpt2core
from gpt2core import prompts
from gpt2core.checkpoint.model_dir import load, save_model
from gpt2core.checkpoint.peft_adapter import save_adapter
from gpt2core.errors import UserError
from gpt2core.model import GPT, GPTConfig
from gpt2core.params import load_params
from gpt2core.sources.synthetic import generate_instructions
from gpt2core.tasks import instructions, labeled_texts
from gpt2core.tokenizer.train import train_bpe
from gpt2core.training import instruct
from gpt2core.training.batches import IGNORE, next_token_batch
from gpt2core.training.checkpoints import CheckpointManager
from gpt2core.training.classify import finetune_classify
from gpt2core.training.instruct import Instructed, batch_loss, finetune_instruct, make_example
from gpt2core.training.storage import LocalFolder

ENTRIES = generate_instructions(0)
TINY = Path(__file__).parents[2] / "profiles/tiny.yaml"
LORA = {"trainable": "lora", "lora_rank": 3, "lora_alpha": 5.0, "lr": 0.02}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project") / "models/base"
    tokenizer = train_bpe([prompts.alpaca(e["instruction"], e["input"]) + e["output"] for e in ENTRIES[:60]], 500)
    torch.manual_seed(0)
    sizes = dict(n_positions=160, n_embd=32, n_layer=2, n_head=2)
    save_model(folder, GPT(GPTConfig(tokenizer.vocab_size, initializer_range=0.1, **sizes)), tokenizer)
    return folder


def run(base: Path, states: CheckpointManager | None = None, **changes: object) -> Instructed:
    section = load_params(TINY).finetune_instruct.model_copy(
        update={"epochs": 2, "batch_size": 4, "max_steps": None, "warmup_steps": 0, "max_new_tokens": 3, **changes}
    )
    splits = instructions.Splits(ENTRIES[:22], ENTRIES[22:28], ENTRIES[28:31])
    return finetune_instruct(section, 1, base, splits, checkpoints=states)


def weights(result: Instructed) -> dict[str, torch.Tensor]:
    return result.model.state_dict()


@pytest.mark.slow
@pytest.mark.parametrize("targets", [["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"], ["attn.c_proj"]])
def test_the_merged_model_is_the_base_with_the_adapter_in_peft(
    base: Path, tmp_path: Path, targets: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import peft
    import transformers

    result = run(base, **LORA, lora_targets=targets, lora_dropout=0.1)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(base.parents[1])
    save_adapter("models/instruct-adapter", result.adapter, "models/base")
    save_model("models/instruct", result.model, result.tokenizer)
    assert result.adapter and len(result.adapter.tensors) == 2 * 2 * len(targets)
    assert result.trainable_parameters == sum(tensor.numel() for tensor in result.adapter.tensors.values())

    theirs = transformers.AutoModelForCausalLM.from_pretrained("models/base")
    before = theirs(IDS := torch.arange(90).view(2, 45)).logits
    with_adapter = peft.PeftModel.from_pretrained(theirs, "models/instruct-adapter").eval()
    logits = with_adapter(IDS).logits
    assert (logits - before).abs().max() > 0.1
    torch.testing.assert_close(result.model(IDS), logits, atol=1e-4, rtol=1e-4)
    by_itself = peft.AutoPeftModelForCausalLM.from_pretrained("models/instruct-adapter").eval()
    torch.testing.assert_close(by_itself(IDS).logits, logits, atol=0, rtol=0)
    ours, _ = gpt2core.load("models/instruct")
    torch.testing.assert_close(ours(IDS), with_adapter.merge_and_unload()(IDS).logits, atol=1e-4, rtol=1e-4)


def test_without_lora_the_adapters_directory_says_so(tmp_path: Path) -> None:
    save_adapter(tmp_path / "a", None, "models/base")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["README.md"]
    assert "trainable: lora" in (tmp_path / "a/README.md").read_text()


def test_an_adapter_has_the_same_bytes_each_time(base: Path, tmp_path: Path) -> None:
    made = []
    for _ in range(2):
        save_adapter(tmp_path / "a", run(base, **LORA, max_steps=2).adapter, "models/base")
        made.append({path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()})
    assert made[0] == made[1] and made[0].keys() == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    with pytest.raises(UserError, match="a: is a LoRA adapter of .*gpt2core merge"):
        load(tmp_path / "a")
    described = json.loads(made[0]["adapter_config.json"])
    assert (described["r"], described["lora_alpha"], described["fan_in_fan_out"]) == (3, 5, True)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "nf4"])
def test_lora_learns_over_a_base_of_any_dtype(base: Path, dtype: str) -> None:
    result = run(base, **LORA, lora_base_dtype=dtype, epochs=4)
    assert result.curve[-1]["val_loss"] < result.before.val_loss - 0.5
    original, _ = load(base)
    state = original.state_dict()
    assert result.adapter
    for name, tensor in weights(result).items():
        key = f"base_model.model.{name.removesuffix('.weight')}.lora_%s.weight"
        expected = state[name]
        if key % "A" in result.adapter.tensors:
            expected = expected + result.adapter.tensors[key % "B"] @ result.adapter.tensors[key % "A"] * (5 / 3)
        torch.testing.assert_close(tensor, expected, msg=name)


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_killed_and_resumed_it_ends_with_the_same_bytes(
    base: Path, tmp_path: Path, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {**LORA, "lora_base_dtype": dtype, "lora_dropout": 0.2, "dropout": 0.1, "grad_accum_steps": 2}
    changes["checkpoint_steps"] = [3, 5]
    whole = run(base, **changes)
    states = CheckpointManager(LocalFolder(tmp_path / "states"))
    monkeypatch.setenv("GPT2CORE_SAVE_INTERVAL_S", "0")
    save = CheckpointManager.save

    def dies(self: CheckpointManager, step: int, *rest: object) -> bool:
        saved = save(self, step, *rest)  # type: ignore[arg-type]
        if step == 4:
            raise SystemExit("killed")
        return saved

    monkeypatch.setattr(CheckpointManager, "save", dies)
    with pytest.raises(SystemExit):
        run(base, states, **changes)
    kept = states.newest()
    assert kept and kept.step == 4
    names = {name for name in kept.tensors if name.startswith("model.")}
    assert names and all(".lora_" in name for name in names)  # what is frozen is not kept
    monkeypatch.setattr(CheckpointManager, "save", save)
    resumed = run(base, states, **changes)
    assert all(torch.equal(tensor, weights(resumed)[name]) for name, tensor in weights(whole).items())
    assert [row.step for row in whole.checkpoints] == [0, 3, 5, 6]
    assert resumed.curve == whole.curve and resumed.checkpoints == whole.checkpoints
    assert whole.adapter and resumed.adapter
    assert safetensors.torch.save(whole.adapter.tensors) == safetensors.torch.save(resumed.adapter.tensors)


@pytest.mark.parametrize("mask_prompt", [True, False])
def test_no_examples_loss_depends_on_its_neighbours(base: Path, mask_prompt: bool) -> None:
    """Neither forward nor backward, whatever they are and however much padding they cause."""
    model, tokenizer = load(base)
    assert isinstance(model, GPT) and tokenizer
    model.double()
    examples = [make_example(entry, tokenizer, 160, mask_prompt) for entry in ENTRIES[:6]]
    assert len({len(example.ids) for example in examples}) > 2

    def loss_of(rows: list[instruct.Example]) -> torch.Tensor:
        return batch_loss(model, next_token_batch(rows, 0))

    def written_out(row: instruct.Example) -> torch.Tensor:
        return F.cross_entropy(
            model(torch.tensor([row.ids]))[0], torch.tensor(row.targets), ignore_index=IGNORE, reduction="sum"
        )

    torch.testing.assert_close(loss_of(examples), sum(map(written_out, examples)), atol=1e-9, rtol=1e-9)
    parameters = list(model.parameters())
    together = torch.autograd.grad(loss_of(examples), parameters)
    alone = [torch.autograd.grad(written_out(row), parameters) for row in examples]
    for name, ours, *theirs in zip(dict(model.named_parameters()), together, *alone, strict=True):
        torch.testing.assert_close(ours, sum(theirs), atol=1e-8, rtol=1e-8, msg=name)
    first = loss_of(examples[:1])
    for others in ([examples[1]], examples[2:5], [examples[5]] * 3):
        silent = [row._replace(targets=[IGNORE] * len(row.ids)) for row in others]  # they are read, but do not count
        torch.testing.assert_close(loss_of([examples[0], *silent]), first, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("changes", [{}, LORA])
def test_micro_batches_add_up_to_one_step(base: Path, changes: dict[str, object]) -> None:
    """Of unequal numbers of targets and, at the end of an epoch, of entries."""
    one = run(base, **changes, batch_size=8)
    several = run(base, **changes, batch_size=3, grad_accum_steps=2)
    other = run(base, **changes, batch_size=2, grad_accum_steps=4)
    assert [row["examples"] for row in other.curve] == [row["examples"] for row in one.curve] == [24, 44]
    assert [row["train_loss"] for row in other.curve] == pytest.approx([row["train_loss"] for row in one.curve])
    for name, tensor in weights(one).items():
        torch.testing.assert_close(weights(other)[name], tensor, atol=2e-4, rtol=2e-3, msg=name)
    assert not torch.equal(
        weights(several)["transformer.h.0.mlp.c_fc.weight"], weights(one)["transformer.h.0.mlp.c_fc.weight"]
    )


def test_activations_computed_again_change_nothing(base: Path) -> None:
    changes = {**LORA, "lora_base_dtype": "int8", "lora_dropout": 0.3, "max_steps": 3}
    kept, again = (weights(run(base, **changes, activation_checkpointing=again)) for again in (False, True))
    assert all(torch.equal(tensor, again[name]) for name, tensor in kept.items())


def test_another_prompt_is_learned_and_asked(base: Path) -> None:
    entry = ENTRIES[0]
    tokenizer = load(base)[1]
    assert tokenizer
    example = make_example(entry, tokenizer, 160, True, prompts.phi3)
    text = f"<|user|>\n{entry['instruction']}\n{entry['input']}<|end|>\n<|assistant|>\n{entry['output']}"
    assert tokenizer.decode(example.ids) == text
    assert tokenizer.decode([t for t in example.targets if t != IGNORE]) == f"{entry['output']}<|endoftext|>"
    tuned = run(base, prompt="phi3", epochs=6)
    asked = [prompts.phi3(e["instruction"], e["input"]) for e in ENTRIES[28:31]]
    for text, response in zip(asked, tuned.after.responses, strict=True):
        ids = torch.tensor([tokenizer.encode(text)])
        answer: list[int] = []
        while len(answer) < 3 and (following := int(tuned.model(ids)[0, -1].argmax())) != tokenizer.eot_id:
            answer.append(following)
            ids = torch.cat([ids, torch.tensor([[following]])], 1)
        assert tokenizer.decode(answer).strip() == response


def test_the_losses_of_the_test_responses_are_the_models(base: Path) -> None:
    result = run(base, **LORA)
    for path_or_model, loss in ((load(base)[0], result.before.test_loss), (result.model, result.after.test_loss)):
        rows = [make_example(entry, result.tokenizer, 160, True) for entry in ENTRIES[28:31]]
        sums = [
            F.cross_entropy(
                path_or_model(torch.tensor([row.ids]))[0], torch.tensor(row.targets), reduction="sum"
            ).item()
            for row in rows
        ]
        n = sum(target != IGNORE for row in rows for target in row.targets)
        assert sum(sums) / n == pytest.approx(loss, rel=1e-4)


def test_a_checkpoint_is_the_model_of_its_step_and_changes_nothing(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: dict[str, object] = {"trainable": "all", "lr": 0.02, "dropout": 0.1}
    without = run(base, **changes)
    monkeypatch.setenv("GPT2CORE_SAVE_INTERVAL_S", "0")
    saved: dict[int, dict[str, torch.Tensor]] = {}
    monkeypatch.setattr(
        CheckpointManager, "save", lambda self, step, tensors, notes: saved.update({step: _copy(tensors)}) or True
    )
    result = run(base, CheckpointManager(LocalFolder(tmp_path)), **changes, checkpoint_steps=[2, 12])
    assert all(torch.equal(tensor, weights(result)[name]) for name, tensor in weights(without).items())
    assert result.curve == without.curve
    assert [row.step for row in result.checkpoints] == [0, 2, 12]  # the last one once
    assert [row[:4] for row in (result.before, result.after)] == [row[:4] for row in without.checkpoints]
    assert without.after.nats == []

    model, tokenizer = load(base)
    assert isinstance(model, GPT) and tokenizer
    model.load_state_dict(saved[2], strict=False)
    for entry, nats, n, response in zip(
        ENTRIES[28:31], result.checkpoints[1].nats, result.test_tokens, result.checkpoints[1].responses, strict=True
    ):
        row = make_example(entry, tokenizer, 160, True)
        targets = torch.tensor(row.targets)
        loss = F.cross_entropy(model(torch.tensor([row.ids]))[0], targets, reduction="sum")
        assert (nats, n) == (pytest.approx(loss.item(), rel=1e-4), (targets != IGNORE).sum())
        ids = tokenizer.encode(prompts.alpaca(entry["instruction"], entry["input"]))
        start = len(ids)
        for _ in range(3):
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
        assert tokenizer.decode(ids[start:]).split("<|endoftext|>")[0].strip() == response
    one = result.checkpoints[1]
    assert sum(one.nats) / sum(result.test_tokens) == pytest.approx(one.test_loss, rel=1e-5)
    assert result.after.test_loss < one.test_loss < result.before.test_loss


def _copy(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix("model."): tensor.clone() for name, tensor in tensors.items()}


def test_a_checkpoint_after_the_end_is_refused(base: Path) -> None:
    with pytest.raises(UserError, match=r"checkpoint_steps: 13 .* 22 entries, 4 per step, has 12 steps"):
        run(base, checkpoint_steps=[2, 13])


def test_a_classifier_learns_by_lora_too_and_is_merged(base: Path, tmp_path: Path) -> None:
    texts = [("spam" if i % 2 else "ham", f"{'you won' if i % 2 else 'meet me'} at the lamp {i}") for i in range(40)]
    section = load_params(TINY).finetune_classify.model_copy(
        update={**LORA, "epochs": 4, "batch_size": 4, "warmup_steps": 0, "max_steps": None}
    )
    splits = labeled_texts.Splits(texts[:28], texts[28:34], texts[34:])
    result = finetune_classify(section, 1, base, ("ham", "spam"), splits)
    assert result.after == [label for label, _ in splits[2]] != result.before
    original = load(base)[0].state_dict()
    tuned = result.model.state_dict()
    assert tuned.keys() == original.keys() - {"lm_head.weight"} | {"score.weight"}
    changed = {name for name in original.keys() & tuned.keys() if not torch.equal(original[name], tuned[name])}
    kinds = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    assert changed == {f"transformer.h.{i}.{kind}.weight" for i in range(2) for kind in kinds}
    assert result.trainable_parameters == 2 * 32 + 2 * 3 * (32 + 96 + 32 + 32 + 32 + 128 + 128 + 32)
    save_model(tmp_path / "c", result.model, result.tokenizer)
    again, _ = load(tmp_path / "c")
    assert all(torch.equal(tensor, tuned[name]) for name, tensor in again.state_dict().items())


def test_a_directory_can_be_read_with_rounded_blocks(base: Path) -> None:
    whole, _ = load(base)
    for dtype, n_bytes, far in (("bfloat16", 2, 0.03), ("int8", 1, 0.03), ("nf4", 0.5, 0.3)):
        model, _ = load(base, frozen_dtype=dtype)  # type: ignore[arg-type]
        assert isinstance(model, GPT) and model.lm_head.weight is model.transformer.wte.weight
        weight = model.transformer.h[0].mlp.c_fc.weight
        assert weight.nbytes == n_bytes * 32 * 128
        ids = torch.arange(60).view(2, 30)
        difference = (model(ids) - whole(ids)).norm() / whole(ids).norm()
        assert 1e-5 < difference < far


def test_early_stopping_keeps_the_best_epoch_and_checkpoint_steps_change_nothing(base: Path) -> None:
    """A learning rate that is too high overfits at once: the best epoch comes before the last."""
    recipe = dict(epochs=6, lr=0.05, patience_evals=2, schedule="constant")
    result = run(base, **recipe)
    losses = [row["val_loss"] for row in result.curve]
    best = losses.index(min(losses))
    assert len(losses) == min(6, best + 3)
    assert result.kept_row == result.curve[best]
    assert result.after.step == result.kept_step == 6 * (best + 1)  # 22 entries, 4 per step
    assert result.after.val_loss == losses[best]
    with_checkpoints = run(base, **recipe, checkpoint_steps=[1, 2, result.kept_step])
    assert [row.step for row in with_checkpoints.checkpoints] == [0, 1, 2, result.kept_step]
    assert with_checkpoints.curve == result.curve
    assert all(
        torch.equal(a, b) for a, b in zip(weights(result).values(), weights(with_checkpoints).values(), strict=True)
    )


@pytest.mark.parametrize(
    "recipe", [dict(optimizer="muon"), dict(optimizer="muon", trainable="lora"), dict(schedule="wsd")]
)
def test_fine_tuning_has_every_optimizer_and_schedule(base: Path, recipe: dict[str, object]) -> None:
    curve = run(base, epochs=3, **recipe).curve
    assert curve[-1]["train_loss"] < curve[0]["train_loss"]
