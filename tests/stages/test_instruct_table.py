"""Two seeds and a checkpoint of an instruction tuning, then judge and benchmarks: what the stages leave behind."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from ruamel.yaml import YAML

import gpt2core
from gpt2core.checkpoint.model_dir import save_model
from gpt2core.inference.respond import respond
from gpt2core.model import GPT, GPTConfig
from gpt2core.params import read_values
from gpt2core.report.pipeline import report_page
from gpt2core.sources.synthetic import generate_instructions
from gpt2core.tokenizer.train import train_bpe
from stages import finetune_instruct, llm_judge_eval

ROOT = Path(__file__).parents[2]
ENTRIES = generate_instructions(0)[:60]
DOCS = [{"question": entry["instruction"], "answer": entry["output"][:9]} for entry in ENTRIES[:8]]
TASK = """task: last_word
dataset_path: json
dataset_kwargs: {data_files: {test: data/own/last.jsonl}}
test_split: test
output_type: loglikelihood
doc_to_text: "{{question}}"
doc_to_target: " {{answer}}"
metric_list: [{metric: acc}, {metric: perplexity}]
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("project")
    params = read_values(ROOT / "profiles/tiny.yaml")
    params["finetune_instruct"] |= dict(
        base="own/base", batch_size=8, max_steps=None, test_fraction=0.2, val_fraction=0.1, max_new_tokens=4,
        seeds=[5, 2], checkpoint_steps=[3],
    )  # fmt: skip
    params["judge"] |= dict(max_items=9, bootstrap_samples=50)
    params["evaluate"] |= dict(tasks=["data/own/last.yaml"], limit=5)
    with (root / "params.yaml").open("w") as file:
        YAML().dump(params, file)
    for folder in ("data/raw", "data/own"):
        (root / folder).mkdir(parents=True)
    (root / "data/raw/instructions.json").write_text(json.dumps(ENTRIES))
    (root / "data/own/last.yaml").write_text(TASK)
    (root / "data/own/last.jsonl").write_text("".join(f"{json.dumps(doc)}\n" for doc in DOCS))
    tokenizer = train_bpe([entry["instruction"] + entry["input"] + entry["output"] for entry in ENTRIES], 500)
    torch.manual_seed(0)
    config = GPTConfig(tokenizer.vocab_size, n_positions=320, n_embd=32, n_layer=2, n_head=2, initializer_range=0.1)
    save_model(root / "models/own/base", GPT(config), tokenizer)
    return root


def metrics(project: Path, name: str) -> dict[str, Any]:
    return dict(json.loads((project / "metrics" / f"{name}.json").read_text()))


@pytest.mark.slow
def test_seeds_checkpoints_and_benchmarks_stand_in_the_last_stages_metrics(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    datasets = pytest.importorskip("datasets")
    pytest.importorskip("lm_eval")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", project / "cache")
    monkeypatch.setenv("GPT2CORE_TRACKING", "off")
    monkeypatch.chdir(project)
    finetune_instruct.main()
    tuned = metrics(project, "finetune_instruct")
    assert list(tuned["val_loss_by_seed"]) == ["5", "2"] == list(tuned["test_loss_by_seed"])
    assert tuned["test_loss_by_seed"]["5"] == tuned["test_loss"] != tuned["test_loss_by_seed"]["2"]

    llm_judge_eval.main()
    out = capsys.readouterr().out
    judged = metrics(project, "llm_judge_eval")
    rows = judged["checkpoints"]
    end = max(int(name.rpartition("_")[2]) for name in rows if name != "base")
    assert list(rows) == ["base", "seed_5_step_3", f"seed_5_step_{end}", "seed_2_step_3", f"seed_2_step_{end}"]
    kept = rows[f"seed_5_step_{end}"]
    # The judge's own figures are those of the kept model, and of its base.
    assert [kept[key] for key in ("score", "score_ci_low", "score_ci_high")] == [
        judged[key] for key in ("mean_score", "ci_low", "ci_high")
    ]
    assert rows["base"]["score"] == judged["base_score"] and "score_difference" not in kept
    assert kept["loss"] < rows["seed_5_step_3"]["loss"] < rows["base"]["loss"]
    losses = [rows[f"seed_{seed}_step_{end}"]["loss"] for seed in (5, 2)]
    assert judged["over_seeds"]["loss"]["mean"] == pytest.approx(sum(losses) / 2, abs=1e-4)
    assert judged["over_seeds"]["loss"]["sd"] == pytest.approx(abs(losses[0] - losses[1]) / math.sqrt(2), abs=1e-4)

    # The first seed's model is the one that is kept, and its responses are those of the file.
    model, tokenizer = gpt2core.load("models/instruct")
    test = json.loads(Path("data/responses/test.json").read_text())
    assert respond(model, tokenizer, test, 4) == [entry["response"] for entry in test]

    # The benchmark, by the model's own logits.
    nats = []
    for doc in DOCS[:5]:
        start, ids = len(tokenizer.encode(doc["question"])), tokenizer.encode(f"{doc['question']} {doc['answer']}")
        targets = torch.tensor(ids[start:])
        nats.append(F.cross_entropy(model(torch.tensor([ids[:-1]]))[0, start - 1 :], targets, reduction="sum").item())
    task = judged["tasks"]["last_word"]
    assert task["perplexity"] == pytest.approx(math.exp(sum(nats) / 5), rel=1e-3)
    assert (task["acc"], task["samples"], task["num_fewshot"]) == (0, 5, 0)

    for words in (r"base +\d", rf"seed_2_step_{end} +\d.*-?\d", "loss over the seeds: .* ± ", "last_word: perplexity "):
        assert re.search(words, out), words
    page = report_page(project)
    for words in ("Seeds and checkpoints on the test set", f"seed 2 step {end}", "over the seeds", "last_word"):
        assert words in page
