"""finetune-instruct with LoRA over rounded blocks and Phi-3's prompt, as a program: what it leaves behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ruamel.yaml import YAML

import gpt2core
from gpt2core import prompts
from gpt2core.checkpoint.model_dir import save_model
from gpt2core.model import GPT, GPTConfig
from gpt2core.params import read_values
from gpt2core.runtime import stage_main
from gpt2core.sources.synthetic import generate_instructions
from gpt2core.tokenizer.train import train_bpe
from stages import finetune_instruct

ROOT = Path(__file__).parents[2]
ENTRIES = generate_instructions(0)[:60]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    params = read_values(ROOT / "profiles/tiny.yaml")
    params["finetune_instruct"] |= dict(
        base="own/base", trainable="lora", lora_base_dtype="int8", prompt="phi3", grad_accum_steps=2, batch_size=4,
        test_fraction=0.1, val_fraction=0.1, max_new_tokens=4,
    )  # fmt: skip
    with (tmp_path / "params.yaml").open("w") as file:
        YAML().dump(params, file)
    (tmp_path / "data/raw").mkdir(parents=True)
    (tmp_path / "data/raw/instructions.json").write_text(json.dumps(ENTRIES))
    tokenizer = train_bpe([entry["instruction"] + entry["input"] + entry["output"] for entry in ENTRIES], 500)
    torch.manual_seed(0)
    config = GPTConfig(tokenizer.vocab_size, n_positions=160, n_embd=32, n_layer=2, n_head=2, initializer_range=0.1)
    save_model(tmp_path / "models/own/base", GPT(config), tokenizer)
    return tmp_path


def stage(project: Path) -> subprocess.CompletedProcess[str]:
    private = ("DVC_", "GPT2CORE_", "MLFLOW_")
    env = {name: value for name, value in os.environ.items() if not name.startswith(private)}
    return subprocess.run(
        [sys.executable, "-m", "stages.finetune_instruct"], cwd=project, capture_output=True, text=True, timeout=120,
        env=env | {"GPT2CORE_TRACKING": "off", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


@pytest.mark.slow
def test_what_it_leaves_behind(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = stage(project)
    assert ended.returncode == 0, ended.stderr
    metrics = json.loads((project / "metrics/finetune_instruct.json").read_text())
    assert metrics["trainable_parameters"] == 2 * 8 * (32 + 96 + 32 + 32 + 32 + 128 + 128 + 32)
    assert metrics["test_perplexity"] < metrics["before_test_perplexity"]

    import peft
    import transformers

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(project)
    merged, tokenizer = gpt2core.load("models/instruct")
    base = json.loads(Path("models/instruct-adapter/adapter_config.json").read_text())["base_model_name_or_path"]
    theirs = peft.PeftModel.from_pretrained(
        transformers.AutoModelForCausalLM.from_pretrained(base), "models/instruct-adapter"
    )
    ids = torch.arange(100).view(2, 50)
    torch.testing.assert_close(merged(ids), theirs.eval()(ids).logits, atol=1e-4, rtol=1e-4)

    entry = json.loads(Path("data/responses/test.json").read_text())[0]
    chat = [{"role": "system", "content": entry["input"]}] * bool(entry["input"])
    chat.append({"role": "user", "content": entry["instruction"]})
    prompt = transformers.AutoTokenizer.from_pretrained("models/instruct").apply_chat_template(chat, tokenize=False)
    assert prompt == prompts.phi3(entry["instruction"], entry["input"])
    assert Path("models/instruct-adapter/README.md").read_text().count("models/own/base") == 2


def test_rounded_weights_that_should_learn_are_refused(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (project / "params.yaml").read_text().replace("trainable: lora", "trainable: blocks")
    (project / "params.yaml").write_text(text)
    monkeypatch.chdir(project)
    monkeypatch.setenv("DVC_ROOT", str(project))
    with pytest.raises(SystemExit) as ended:
        stage_main(finetune_instruct.main)
    assert not (project / "models/instruct").exists()
    assert "finetune_instruct.lora_base_dtype: 'int8' weights cannot learn; take float32, or trainable: lora" in (
        ended.value.code
    )
