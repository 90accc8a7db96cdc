"""Our adapter beside lm-eval's own `hf` model, on one directory; and `gpt2core evaluate` over local files."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import gpt2core
from gpt2core.checkpoint.model_dir import save_model
from gpt2core.config.evaluate import Evaluate
from gpt2core.config.mlflow import Mlflow
from gpt2core.corpus.shards import Shard
from gpt2core.errors import UserError
from gpt2core.evaluation.mmlu import read_mmlu
from gpt2core.model import GPT, GPTConfig
from gpt2core.params import load_params
from gpt2core.tokenizer.train import train_bpe
from gpt2core.training.pretrain import Corpus, pretrain
from tests.cli.test_cli import Run, refused, run

__all__ = ["run"]  # fixtures

TEXT = "The keeper of the harbour took the lamp to the tower, and the lamp was lit. " * 4
N_POSITIONS = 64
WORDS = ("lamp", "tower", "harbour", "keeper of the harbour")

# The four kinds of tasks: choices, a last word, a whole text, a generated answer.
TASKS = {
    "choose": "output_type: multiple_choice\ndoc_to_choice: '{{choices}}'\ndoc_to_target: '{{label}}'\n"
    "doc_to_text: '{{question}}'\nmetric_list: [{metric: acc}, {metric: acc_norm}]\n",
    "last": "output_type: loglikelihood\ndoc_to_text: '{{question}}'\ndoc_to_target: ' {{choices[0]}}'\n"
    "metric_list: [{metric: perplexity}, {metric: acc}]\n",
    "whole": "output_type: loglikelihood_rolling\ndoc_to_text: ''\ndoc_to_target: '{{long}}'\n"
    "metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]\n",
    "write": "output_type: generate_until\ndoc_to_text: '{{question}}'\ndoc_to_target: '{{choices[0]}}'\n"
    "generation_kwargs: {until: ['.'], max_gen_toks: 9}\nmetric_list: [{metric: exact_match}]\n",
}


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "lm"
    tokenizer = train_bpe([TEXT], 280)
    config = GPTConfig(tokenizer.vocab_size, N_POSITIONS, n_embd=16, n_layer=2, n_head=2, initializer_range=0.3)
    torch.manual_seed(0)
    save_model(folder, GPT(config), tokenizer)
    return folder


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of task files over one JSONL."""
    datasets = pytest.importorskip("datasets")
    folder = tmp_path_factory.mktemp("tasks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
        docs = [
            {
                "question": f"The {WORDS[i % 3]} took the" + " lamp to the" * (i % 4),
                "choices": [WORDS[(i + j) % 4] for j in range(4)],
                "label": i % 4,
                "long": TEXT[: 40 * i + 5] + str(i),
            }
            for i in range(12)
        ]
        (folder / "docs.jsonl").write_text("\n".join(map(json.dumps, docs)) + "\n")
        for name, config in TASKS.items():
            where = f"task: {name}\ndataset_path: json\ntest_split: test\n"
            where += f"dataset_kwargs: {{data_files: {{test: '{folder}/docs.jsonl'}}}}\n"
            (folder / f"{name}.yaml").write_text(where + config)
        yield folder


@pytest.fixture(scope="module")
def theirs(model_dir: Path) -> Iterator[Any]:
    pytest.importorskip("transformers")
    evaluator = pytest.importorskip("lm_eval.evaluator")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluator, "add_env_info", lambda results: None)  # asks pip and the system for a minute
        yield pytest.importorskip("lm_eval.models.huggingface").HFLM(
            pretrained=str(model_dir), device="cpu", batch_size=3, dtype="float32"
        )


@pytest.fixture(scope="module")
def ours(model_dir: Path) -> Any:
    pytest.importorskip("lm_eval")
    from gpt2core.evaluation.harness import Adapter
    from gpt2core.inference.batches import Batches

    return Adapter(Batches(*gpt2core.load(model_dir)), batch_size=3)


def asked(kind: str, *arguments: Any) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(request_type=kind, doc={}, arguments=each, idx=i) for i, each in enumerate(arguments)]


@pytest.mark.slow
def test_likelihoods_are_those_of_hf(ours: Any, theirs: Any) -> None:
    """Also of an empty context, one that ends in a space, one too long for the model, and the separator."""
    pairs = [
        ("", "The lamp"), ("The lamp ", "was lit."), (TEXT, " lit"), (TEXT, " the tower, and the lamp"),
        ("a<|endoftext|>b", "c"), ("The lamp was", " lit"), ("The lamp was", " l"), ("The lamp was", " lit. The"),
        ("ünï", "cödé"), ("The lamp was", " lit"),
    ]  # fmt: skip
    requests = asked("loglikelihood", *pairs)
    # What the model itself would say next, so that some answers are greedy.
    contexts = [TEXT[:end] for end in range(3, 60)]
    options = {"until": [], "max_gen_toks": 1}
    said = ours.generate_until(asked("generate_until", *[(context, options) for context in contexts]))
    requests += asked("loglikelihood", *[pair for pair in zip(contexts, said, strict=True) if pair[1].strip()])
    expected = theirs.loglikelihood(requests, disable_tqdm=True)
    found = ours.loglikelihood(requests)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert {greedy for _, greedy in found} == {True, False}
    assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], abs=1e-3, rel=1e-5)


@pytest.mark.slow
def test_one_text_cut_at_two_places_is_scored_by_the_models_logits(ours: Any, model_dir: Path) -> None:
    """lm-eval 0.4.13's `hf` gives the shorter answer the likelihoods of other places."""
    model, tokenizer = gpt2core.load(model_dir)
    pairs = [("The lamp was", " lit"), ("The lamp", " was lit")]
    ids = tokenizer.encode("The lamp was lit")
    log_p = model(torch.tensor([ids[:-1]]))[0].log_softmax(-1)
    for (context, _), (value, _) in zip(pairs, ours.loglikelihood(asked("loglikelihood", *pairs)), strict=True):
        start = len(tokenizer.encode(context))
        assert value == pytest.approx(sum(log_p[i - 1, ids[i]].item() for i in range(start, len(ids))), rel=1e-5)


@pytest.mark.slow
def test_whole_texts_are_those_of_hf(ours: Any, theirs: Any) -> None:
    requests = asked("loglikelihood_rolling", *[(TEXT[:n],) for n in (1, 70, 150, 300)])
    expected = theirs.loglikelihood_rolling(requests, disable_tqdm=True)
    assert ours.loglikelihood_rolling(requests) == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_written_texts_are_those_of_hf(ours: Any, theirs: Any) -> None:
    """Contexts of unequal length in one batch, one too long for the model; stop strings, one of several tokens."""
    options = [
        {"until": ["."], "max_gen_toks": 20}, {"until": [], "max_gen_toks": 30}, {"until": "lam", "max_gen_toks": 25},
    ]  # fmt: skip
    contexts = ["The", "The lamp was", TEXT, "keeper of the harbour took", "lit"]
    requests = asked("generate_until", *[(context, dict(each)) for each in options for context in contexts])
    expected = theirs.generate_until(requests, disable_tqdm=True)
    found = ours.generate_until(requests)
    assert found == expected
    assert len(set(found)) > 5


@pytest.mark.slow
def test_the_commands_figures_are_lm_evals(run: Run, model_dir: Path, tasks: Path, theirs: Any) -> None:
    import lm_eval
    from lm_eval.tasks import TaskManager

    ended = run("evaluate", model_dir, "--tasks", ",".join(TASKS), "--include", tasks, "--num-fewshot", "1", "--json")
    found = json.loads(ended.out)["tasks"]
    manager = TaskManager(include_defaults=False, include_path=str(tasks))
    expected = lm_eval.simple_evaluate(
        theirs, tasks=list(TASKS), task_manager=manager, num_fewshot=1, bootstrap_iters=0, log_samples=False
    )["results"]
    assert list(found) == list(TASKS)
    for name, task in found.items():
        assert (task["samples"], task["num_fewshot"]) == (12, 1)
        assert task["metrics"]
        for metric, figures in task["metrics"].items():
            assert figures["value"] == pytest.approx(expected[name][f"{metric},none"], rel=1e-4), (name, metric)
    assert 0 < found["choose"]["metrics"]["acc"]["stderr"] < 1
    out = run("evaluate", model_dir, "--tasks", f"{tasks}/last.yaml", "--limit", "5", "--dtype", "int8").out
    assert "perplexity" in out and " 5 " in out


@pytest.mark.slow
def test_mmlus_own_files_are_asked_as_lm_evals_mmlu(run: Run, model_dir: Path, tmp_path: Path, theirs: Any) -> None:
    """Same words as lm-eval's task file, and the answers of its `hf` model, weighted by the questions of a subject."""
    import datasets
    import lm_eval
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._yaml_loader import load_yaml

    subjects = {"anatomy": 7, "abstract_algebra": 3}
    for split, n_of in (("test", subjects), ("dev", dict.fromkeys(subjects, 2))):
        (tmp_path / split).mkdir()
        for subject, n in n_of.items():
            rows = [f"Is {i} a {WORDS[i % 3]} ?,a{i},b,c,d{i},{'ABCD'[(i * i) % 4]}" for i in range(n)]
            (tmp_path / split / f"{subject}_{split}.csv").write_text("\n".join(rows) + "\n")
    ended = run("evaluate", model_dir, "--tasks", "mmlu", "--mmlu-csv", tmp_path, "--num-fewshot", "1", "--json")
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)["tasks"]
    assert set(found) == {"mmlu", "mmlu_anatomy", "mmlu_abstract_algebra"}
    assert {name: task["samples"] for name, task in found.items()} == {
        "mmlu": 10, "mmlu_anatomy": 7, "mmlu_abstract_algebra": 3,
    }  # fmt: skip

    root = Path(lm_eval.__file__).parent / "tasks/mmlu/default"
    manager = TaskManager(include_defaults=False, include_path=str(root))
    right = 0.0
    for subject, n in subjects.items():
        config = load_yaml(manager.task_index[f"mmlu_{subject}"].yaml_path, resolve_func=True)
        splits = {split: datasets.Dataset.from_list(rows) for split, rows in read_mmlu(tmp_path)[subject].items()}
        config = {key: value for key, value in config.items() if key not in ("dataset_path", "dataset_name", "tag")}
        task = ConfigurableTask(config=config | {"custom_dataset": lambda splits=splits, **_: splits})
        results = lm_eval.simple_evaluate(
            theirs, tasks=[task], task_manager=manager, num_fewshot=1, bootstrap_iters=0, log_samples=False
        )
        acc = results["results"][f"mmlu_{subject}"]["acc,none"]
        assert found[f"mmlu_{subject}"]["metrics"]["acc"]["value"] == pytest.approx(acc)
        right += acc * n
    assert found["mmlu"]["metrics"]["acc"]["value"] == pytest.approx(right / 10)


@pytest.mark.slow
def test_mistakes_are_told(
    run: Run, model_dir: Path, tasks: Path, ours: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import datasets

    def away(*_: Any, **__: Any) -> Any:
        raise ConnectionError("Couldn't reach 'Rowan/hellaswag' on the Hub")

    refused(run("evaluate", model_dir, "--tasks", "lst", "--include", tasks), 1, "lst: is neither a task of lm-eval")
    (tasks / "bad.yaml").write_text("task: bad\ndataset_path: json\noutput_type: telepathy\n")
    refused(run("evaluate", model_dir, "--tasks", f"{tasks}/bad.yaml"), 1, "bad.yaml: ")
    (tasks / "bad.yaml").unlink()
    monkeypatch.setattr(datasets, "load_dataset", away)
    refused(
        run("evaluate", model_dir, "--tasks", "hellaswag"), 1,
        "hellaswag: its data is not available (Couldn't reach 'Rowan/hellaswag' on the Hub)", "local data",
    )  # fmt: skip
    refused(run("evaluate", model_dir, "--tasks", "mmlu", "--mmlu-csv", tmp_path), 1, "has no test/SUBJECT_test.csv")
    with pytest.raises(UserError, match="asks for up to 64 new tokens, and this model has 64 positions"):
        ours.generate_until(asked("generate_until", ("a", {"max_gen_toks": 64})))
    with pytest.raises(UserError, match="'num_beams' is not known here"):
        ours.generate_until(asked("generate_until", ("a", {"num_beams": 2, "max_gen_toks": 4})))
    with pytest.raises(UserError, match="an answer of .* tokens cannot be scored by a model of 64 positions"):
        ours.loglikelihood(asked("loglikelihood", ("a", TEXT)))


@pytest.mark.slow
def test_benchmarks_during_pretraining_are_logged_and_change_nothing(
    model_dir: Path, tasks: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """At steps 2 and 4 of 4; the last figures are those of the final model."""
    from gpt2core.evaluation.harness import evaluate, named_metrics
    from gpt2core.inference.batches import Batches
    from gpt2core.tracking.benchmarks import benchmark_logger

    monkeypatch.delenv("GPT2CORE_TRACKING", raising=False)
    tokenizer = gpt2core.load(model_dir)[1]
    files = [str(tasks / "choose.yaml"), str(tasks / "write.yaml")]
    params = load_params("profiles/tiny.yaml").model_copy(
        update={
            "mlflow": Mlflow(benchmark_interval_steps=2), "evaluate": Evaluate(tasks=files, num_fewshot=1, limit=9),
        }
    )  # fmt: skip
    section = params.pretrain.model_copy(
        update=dict(
            n_layer=2, n_head=2, n_embd=32, n_positions=64, context=32, batch_size=4, max_steps=4, warmup_steps=1,
            eval_interval_steps=1, eval_batches=1, sample_tokens=4, dropout=0.1,
        )
    )  # fmt: skip
    ids = np.arange(4000, dtype=np.uint16) % tokenizer.vocab_size
    corpora = [Corpus(*[Shard(ids, tokenizer.vocab_size, 1, len(ids))] * 2)]
    logged: list[tuple[Any, int]] = []
    on_model = benchmark_logger(params, tokenizer, lambda metrics, step: logged.append((metrics, step)))
    plain = pretrain(section, 1, corpora, tokenizer)
    watched = pretrain(section, 1, corpora, tokenizer, on_model=on_model)
    assert [step for _, step in logged] == [2, 4]
    expected = evaluate(Batches(watched.model, tokenizer), files, num_fewshot=1, limit=9)
    assert logged[-1][0] == named_metrics(expected)
    assert logged[-1][0]["choose"].keys() >= {"acc", "acc_norm", "acc_stderr", "samples"}
    assert watched.curve == plain.curve
    for name, tensor in plain.model.state_dict().items():
        assert torch.equal(tensor, watched.model.state_dict()[name]), name

    def fail(*_: Any, **__: Any) -> None:
        random.seed(0)
        raise OSError("the disk is full")

    monkeypatch.setattr("lm_eval.evaluate", fail)
    random.seed(5)
    on_model(plain.model, 6)
    drawn = random.random()
    assert "step 6: no benchmarks, OSError: the disk is full" in caplog.text
    random.seed(5)
    assert drawn == random.random()
    monkeypatch.setenv("GPT2CORE_TRACKING", "off")
    benchmark_logger(params, tokenizer, lambda metrics, step: logged.append((metrics, step)))(plain.model, 8)
    assert len(logged) == 2


@pytest.mark.slow
def test_a_benchmark_that_does_not_exist_is_said_before_the_training(
    model_dir: Path, tasks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lm_eval")
    from gpt2core.tracking.benchmarks import benchmark_logger

    monkeypatch.delenv("GPT2CORE_TRACKING", raising=False)
    update = {"mlflow": Mlflow(benchmark_interval_steps=2), "evaluate": Evaluate(tasks=[str(tasks / "gone.yaml")])}
    params = load_params("profiles/tiny.yaml").model_copy(update=update)
    with pytest.raises(UserError, match="gone.yaml: is neither a task of lm-eval nor a file"):
        benchmark_logger(params, gpt2core.load(model_dir)[1], lambda metrics, step: None)


def test_without_the_extra_it_says_what_to_install(run: Run, model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    said = "`gpt2core evaluate` needs lm_eval; install: pip install 'gpt2core[eval]'"
    refused(run("evaluate", model_dir, "--tasks", "mmlu"), 1, said)
