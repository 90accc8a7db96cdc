"""The command `gpt2core`: what each subcommand prints, as text and as JSON, and how it ends."""

from __future__ import annotations

import csv
import functools
import io
import json
import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

import gpt2core
from gpt2core import cli, prompts
from gpt2core.checkpoint.model_dir import save_model
from gpt2core.inference import generate
from gpt2core.model import GPT, GPTClassifier, GPTConfig
from gpt2core.tokenizer.train import train_char
from tests.small import TEXT, config_and_tokenizer

ROOT = Path(__file__).parents[2]
COMMANDS = ("generate", "classify", "inspect", "respond", "convert", "export-openai", "verify", "summary")


class Ended(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Ended]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Call the console script's entry point in this process; give its exit code and what it wrote."""

    def call(*arguments: str | Path) -> Ended:
        monkeypatch.setattr(sys, "argv", ["gpt2core", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        code, written = ended.value.code, capsys.readouterr()
        if isinstance(code, str):  # Python prints it and exits with 1
            return Ended(1, written.out, f"{written.err}{code}\n")
        return Ended(code or 0, written.out, written.err)

    return call


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random language model `lm`, a classifier `classifier`, and `lm` without its tokenizer, `mute`."""
    folder = tmp_path_factory.mktemp("models")
    config, tokenizer = config_and_tokenizer()
    save_model(folder / "lm", GPT(config), tokenizer)
    save_model(folder / "classifier", GPTClassifier(config, ("ham", "spam")), tokenizer)
    shutil.copytree(folder / "lm", folder / "mute", ignore=shutil.ignore_patterns("vocab.json", "tokenizer.json"))
    return folder


def refused(ended: Ended, code: int, *words: str) -> None:
    """One message without a traceback, nothing on standard output."""
    assert ended.code == code, ended
    assert ended.out == ""
    assert "Traceback" not in ended.err
    if code == 1:
        assert ended.err.startswith("error: ")
        assert len(ended.err.strip().splitlines()) == 1
    for word in words:
        assert word in ended.err


# -- Help and usage --------------------------------------------------------------------------------------------------


def test_help_lists_the_commands(run: Run) -> None:
    for option in ("--help", "-h"):
        ended = run(option)
        assert ended.code == 0
        assert all(command in ended.out for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command(run: Run, command: str) -> None:
    ended = run(command, "--help")
    assert ended.code == 0
    assert f"gpt2core {command} " in ended.out.splitlines()[0]
    assert "--json" in ended.out


def test_generate_has_the_options_of_sampling(run: Run) -> None:
    shown = run("generate", "--help").out
    for option in ("--prompt", "--max-new-tokens", "--temperature", "--top-k", "--top-p", "--seed"):
        assert option in shown


def test_version(run: Run) -> None:
    ended = run("--version")
    assert (ended.code, ended.out.split()) == (0, ["gpt2core,", "version", gpt2core.__version__])


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["no-such-command"], "no-such-command"),
        (["generate"], "MODEL_DIR"),
        (["generate", "x", "--temperature", "hot"], "--temperature"),
        (["generate", "x", "--temperature", "-1"], "--temperature"),
        (["generate", "x", "--top-k", "0"], "--top-k"),
        (["generate", "x", "--top-p", "1.5"], "--top-p"),
        (["generate", "x", "--top-p", "0"], "--top-p"),
        (["generate", "x", "--max-new-tokens", "0"], "--max-new-tokens"),
        (["generate", "x", "--seed", "-1"], "--seed"),
        (["generate", "x", "--seed", str(2**64)], "--seed"),
        (["generate", "x", "--no-such-option"], "--no-such-option"),
        (["classify", "x"], "TEXT"),
        (["respond", "x"], "--instruction"),
        (["convert", "x"], "OUT_DIR"),
        (["summary", "x"], "x"),
    ],
    ids=" ".join,
)
def test_wrong_usage_ends_with_2(run: Run, arguments: list[str], word: str) -> None:
    refused(run(*arguments), 2, "Usage: ", word)


# -- generate --------------------------------------------------------------------------------------------------------


def test_generate_continues_the_prompt_as_the_library_does(run: Run, models: Path) -> None:
    options = ("--prompt", "The lamp", "--max-new-tokens", "12", "--temperature", "0")
    ended = run("generate", models / "lm", *options)
    model, tokenizer = gpt2core.load(models / "lm")
    ids = generate(model, torch.tensor([tokenizer.encode("The lamp")]), 12, eos_id=tokenizer.eot_id)[0].tolist()
    expected = tokenizer.decode(ids).partition("<|endoftext|>")[0]
    assert ended == Ended(0, expected + "\n", "")

    as_json = run("generate", models / "lm", *options, "--json")
    assert as_json.code == 0
    value = json.loads(as_json.out)
    assert value["prompt"] == "The lamp"
    assert value["prompt"] + value["text"] == expected
    assert 0 < value["new_tokens"] <= 12


def test_generate_repeats_with_its_seed(run: Run, models: Path) -> None:
    def text(seed: int) -> str:
        ended = run("generate", models / "lm", "--prompt", "The", "--max-new-tokens", "40", "--seed", str(seed))
        assert ended.code == 0
        return ended.out

    assert text(1) == text(1)
    assert len({text(seed) for seed in range(4)}) > 1


def test_top_k_of_one_is_greedy(run: Run, models: Path) -> None:
    options = ("--prompt", "The", "--max-new-tokens", "20")
    greedy = run("generate", models / "lm", *options, "--temperature", "0")
    assert run("generate", models / "lm", *options, "--top-k", "1") == greedy
    assert run("generate", models / "lm", *options, "--top-p", "0.000001") == greedy


def test_a_temperature_near_zero_is_greedy(run: Run, models: Path) -> None:
    options = ("--prompt", "The", "--max-new-tokens", "20", "--temperature")
    assert run("generate", models / "lm", *options, "1e-40") == run("generate", models / "lm", *options, "0")


def test_a_temperature_must_be_a_number(run: Run, models: Path) -> None:
    refused(run("generate", models / "lm", "--temperature", "nan"), 1, "temperature", "nan")


def test_generate_starts_a_document_without_a_prompt(run: Run, models: Path) -> None:
    ended = run("generate", models / "lm", "--max-new-tokens", "5", "--json")
    assert ended.code == 0
    assert json.loads(ended.out)["prompt"] == ""


def test_generate_goes_on_beyond_the_context(run: Run, models: Path) -> None:
    ended = run("generate", models / "lm", "--prompt", "x" * 318, "--max-new-tokens", "8", "--temperature", "0")
    assert ended.code == 0
    assert ended.out.startswith("x" * 318)


def test_generate_refuses_a_classifier(run: Run, models: Path) -> None:
    refused(run("generate", models / "classifier"), 1, "classifier", "gpt2core classify")


def test_generate_knows_what_its_tokenizer_knows(run: Run, tmp_path: Path) -> None:
    """A tokenizer of characters has only those of its corpus."""
    tokenizer = train_char(["The lamp."])
    save_model(tmp_path, GPT(GPTConfig(tokenizer.vocab_size, n_positions=8, n_embd=4, n_layer=1, n_head=1)), tokenizer)
    assert run("generate", tmp_path, "--prompt", "The").code == 0
    refused(run("generate", tmp_path, "--prompt", "Thé"), 1, "'é'")


# -- classify --------------------------------------------------------------------------------------------------------


def test_classify_names_the_likelier_class(run: Run, models: Path) -> None:
    texts = ["The lamp was lit.", "the tower", "12 Ünïcode\n\t€ <|endoftext|>"]
    ended = run("classify", models / "classifier", *texts, "--json")
    assert ended.code == 0
    model, tokenizer = gpt2core.load(models / "classifier")
    results = json.loads(ended.out)
    assert [result["text"] for result in results] == texts
    for result in results:
        ids = tokenizer.encode(result["text"])
        with torch.inference_mode():
            p = model(torch.tensor([ids]), torch.tensor([len(ids)])).softmax(-1)[0].tolist()
        assert list(result["probabilities"]) == ["ham", "spam"]
        assert list(result["probabilities"].values()) == pytest.approx(p, abs=1e-5)
        assert result["label"] == ("ham", "spam")[p[1] > p[0]]

    lines = run("classify", models / "classifier", *texts[:2]).out.splitlines()
    for line, result in zip(lines, results[:2], strict=True):
        label, share, text = line.split(maxsplit=2)
        assert (label, text) == (result["label"], result["text"])
        assert share == f"{result['probabilities'][label]:.1%}"


def test_classify_takes_texts_of_any_length(run: Run, models: Path) -> None:
    """An empty one, and one longer than the context, whose end is cut off."""
    ended = run("classify", models / "classifier", "", TEXT * 20, TEXT * 21, "--json")
    assert ended.code == 0
    empty, one, other = json.loads(ended.out)
    assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-5)
    assert sum(empty["probabilities"].values()) == pytest.approx(1, abs=1e-5)


def test_classify_reads_lines_columns_and_standard_input(
    run: Run, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["The lamp was lit.", 'a "tower", or\nnone', "the mill"]
    wanted = json.loads(run("classify", models / "classifier", *texts, "--json").out)
    with (tmp_path / "texts.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["id", "text"], *enumerate(texts)])
    (tmp_path / "texts.txt").write_bytes(f"{texts[0]}\r\n\n{texts[2]}\n".encode())
    by_column = run("classify", models / "classifier", "--file", tmp_path / "texts.csv", "--column", "text", "--json")
    by_line = run("classify", models / "classifier", "--file", tmp_path / "texts.txt", "--json")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO((texts[2]).encode())))
    by_both = run("classify", models / "classifier", texts[0], "--file", "-", "--json")
    for ended, expected in ((by_column, wanted), (by_line, wanted[::2]), (by_both, wanted[::2])):
        found = json.loads(ended.out)
        assert [result["text"] for result in found] == [result["text"] for result in expected]
        for result, other in zip(found, expected, strict=True):
            assert result["probabilities"] == pytest.approx(other["probabilities"], abs=1e-5)
    shown = run("classify", models / "classifier", texts[0], "--probabilities").out
    assert all(f"{label} {p:.1%}" in shown for label, p in wanted[0]["probabilities"].items())


def test_classify_says_what_a_file_lacks(run: Run, models: Path, tmp_path: Path) -> None:
    classify = functools.partial(run, "classify", models / "classifier")
    (tmp_path / "empty").write_text("\n \n")
    (tmp_path / "t.csv").write_text("id,words\n1,a\n")
    (tmp_path / "open.csv").write_text('text\n"a\n')
    refused(classify("--file", tmp_path / "empty"), 1, "has no text")
    refused(classify("--file", tmp_path / "none"), 1, "no such file")
    refused(classify("--file", tmp_path / "t.csv", "--column", "text"), 1, "no column 'text'", "id, words")
    refused(classify("--file", tmp_path / "open.csv", "--column", "text"), 1, "not CSV")
    refused(classify("x", "--column", "text"), 2, "--file")


def test_classify_refuses_a_language_model(run: Run, models: Path) -> None:
    refused(run("classify", models / "lm", "hello"), 1, "not a classifier", "gpt2core generate")


# -- respond ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("input_text", ["", "lamp, tower"])
def test_respond_answers_greedily_after_the_alpaca_prompt(run: Run, models: Path, input_text: str) -> None:
    options = ["--instruction", "Sort.", "--max-new-tokens", "6", *(["--input", input_text] if input_text else [])]
    ended = run("respond", models / "lm", *options)
    model, tokenizer = gpt2core.load(models / "lm")
    ids = tokenizer.encode(prompts.alpaca("Sort.", input_text))
    out = generate(model, torch.tensor([ids]), 6, eos_id=tokenizer.eot_id)[0, len(ids) :].tolist()
    expected = tokenizer.decode(out).partition("<|endoftext|>")[0].strip()
    assert ended == Ended(0, expected + "\n", "")
    as_json = run("respond", models / "lm", *options, "--json")
    assert json.loads(as_json.out) == {"instruction": "Sort.", "input": input_text, "response": expected}


def test_respond_asks_in_the_form_that_the_model_keeps(run: Run, models: Path, tmp_path: Path) -> None:
    model, tokenizer = gpt2core.load(models / "lm")
    save_model(tmp_path / "phi3", model, tokenizer, chat_template=prompts.chat_template(prompts.phi3))
    answers = [run("respond", folder, "--instruction", "Sort.").out for folder in (models / "lm", tmp_path / "phi3")]
    ids = tokenizer.encode("<|user|>\nSort.<|end|>\n<|assistant|>\n")
    out = generate(model, torch.tensor([ids]), 256, eos_id=tokenizer.eot_id)[0, len(ids) :].tolist()
    assert answers[0] != answers[1] == tokenizer.decode(out).partition("<|endoftext|>")[0].strip() + "\n"


def test_respond_refuses_a_prompt_longer_than_the_context(run: Run, models: Path) -> None:
    refused(run("respond", models / "lm", "--instruction", TEXT * 20), 1, "320", "shorten")


def test_respond_refuses_a_classifier(run: Run, models: Path) -> None:
    refused(run("respond", models / "classifier", "--instruction", "Sort."), 1, "classifier")


# -- Model directories that are none ---------------------------------------------------------------------------------

USES = {"generate": (), "classify": ("hello",), "respond": ("--instruction", "Sort.")}


@pytest.mark.parametrize("command", USES)
def test_a_directory_that_is_not_there(run: Run, tmp_path: Path, command: str) -> None:
    refused(run(command, tmp_path / "none", *USES[command]), 1, str(tmp_path / "none"), "no such model directory")


@pytest.mark.parametrize("command", USES)
def test_a_directory_that_is_no_model(run: Run, tmp_path: Path, command: str) -> None:
    refused(run(command, tmp_path, *USES[command]), 1, "config.json")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    refused(run(command, tmp_path, *USES[command]), 1, "model_type", "gpt2")
    (tmp_path / "config.json").write_text("{")
    refused(run(command, tmp_path, *USES[command]), 1, "config.json", "JSON")


def test_a_model_without_its_tokenizer(run: Run, models: Path) -> None:
    refused(run("generate", models / "mute"), 1, "vocab.json")


def test_damaged_weights(run: Run, models: Path, tmp_path: Path) -> None:
    shutil.copytree(models / "lm", tmp_path / "lm")
    weights = tmp_path / "lm/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    refused(run("generate", tmp_path / "lm"), 1, "model.safetensors")
    weights.unlink()
    refused(run("generate", tmp_path / "lm"), 1, "model.safetensors")


# -- convert ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A small model under OpenAI's file names."""
    make = runpy.run_path(str(ROOT / "scripts/make_random_checkpoint.py"))["make"]
    make(GPTConfig(vocab_size=300, n_positions=32, n_embd=12, n_layer=2, n_head=3), tmp_path / "openai")
    return tmp_path / "openai"


def test_convert_and_use(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    ended = run("convert", checkpoint, out)
    assert ended.code == 0
    assert str(out) in ended.out
    assert json.loads(run("convert", checkpoint, out, "--json").out) == {"model_dir": str(out)}
    ended = run("generate", out, "--prompt", "Hello", "--max-new-tokens", "4")
    assert ended.code == 0
    assert ended.out.startswith("Hello")


def test_convert_refuses_what_is_no_checkpoint(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    refused(run("convert", tmp_path / "none", out), 1, "none", "no such directory")
    data = checkpoint / "model.ckpt.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:-4])
    refused(run("convert", checkpoint, out), 1, data.name)
    assert not out.exists()
    assert list(tmp_path.iterdir()) == [checkpoint]  # no temporary folder either


def test_convert_keeps_a_folder_that_is_no_model(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    letters = tmp_path / "letters"
    letters.mkdir()
    (letters / "dear.txt").write_text("Dear …")
    refused(run("convert", checkpoint, letters), 1, "letters")
    assert (letters / "dear.txt").exists()


# -- summary ---------------------------------------------------------------------------------------------------------


def test_summary_outside_a_project(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    refused(run("summary"), 1, "metrics", "dvc repro")
    refused(run("summary", "--json"), 1, "metrics", "dvc repro")


def test_summary_of_a_project(run: Run, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts with the marks of rich in them are shown as they are."""
    metrics = {
        "pretrain": {"val_loss": 1.2345, "val_perplexity": 3.4, "bits_per_byte": 0.5, "bits_per_byte_floor": None},
        "finetune_classify": {
            "test_accuracy": 0.975,
            "test_f1": 0.97,
            "baseline_test_accuracy": 0.88,
            "characters_test_accuracy": 0.99,
        },
        "finetune_instruct": {"val_loss": 0.75, "before_val_loss": 2.5},
        "llm_judge_eval": {"judge": "chrf", "mean_score": 61.04, "base_score": 3.0},
    }
    (tmp_path / "metrics").mkdir()
    for name, values in metrics.items():
        (tmp_path / f"metrics/{name}.json").write_text(json.dumps(values))
    (tmp_path / "metrics/samples.json").write_text(json.dumps([{"text": "early"}, {"text": "A [bold]late[/] tale."}]))
    messages = [("ham", "See you [soon]"), ("spam", "WIN [red]now[/red]"), ("ham", "Bye"), ("spam", "Cash :smile:")]
    (tmp_path / "data/raw").mkdir(parents=True)
    rows = [json.dumps({"label": label, "text": text}) for label, text in messages]
    (tmp_path / "data/raw/classification.jsonl").write_text("\n".join(rows) + "\n")
    answers = [
        {"instruction": f"Do {i}.", "input": "", "output": "ok", "response": f"[done] {i}", "base_response": ""}
        for i in range(3)
    ]
    (tmp_path / "data/responses").mkdir()
    (tmp_path / "data/responses/test.json").write_text(json.dumps(answers))
    shutil.copytree(models / "classifier", tmp_path / "models/classifier")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")

    ended = run("summary")
    assert ended.code == 0, ended.err
    shown = ("1.234", "97.50%", "strongest baseline: character n-gram TF-IDF", "99.00%", "61.0", "chrf",
             "A [bold]late[/] tale.", "See you [soon]", "[done] 1", ":smile:",
             "mlflow ui")  # fmt: skip
    for text in shown:
        assert text in ended.out
    assert "WIN [red]now[/red]" in ended.out
    assert "Do 2." not in ended.out
    value = json.loads(run("summary", "--json").out)
    assert value["metrics"] == metrics
    assert value["strongest_baseline"] == "characters_test_accuracy"
    assert [row["text"] for row in value["messages"]] == [messages[1][1], messages[0][1], messages[3][1]]
    assert [row["response"] for row in value["answers"]] == ["[done] 0", "[done] 1"]


# -- As programs -----------------------------------------------------------------------------------------------------


def program(*command: str | Path) -> tuple[int, str, str]:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout, done.stderr


def test_the_console_script_is_the_module(run: Run, models: Path) -> None:
    script = Path(sys.executable).parent / ("gpt2core.exe" if os.name == "nt" else "gpt2core")
    assert script.exists(), "gpt2core is not installed: pip install -e ."
    arguments = ("generate", models / "lm", "--prompt", "The", "--max-new-tokens", "9", "--seed", "3")
    code, out, err = program(sys.executable, "-m", "gpt2core", *arguments)
    assert (code, out, err) == run(*arguments)
    assert (code, err) == (0, "")
    assert out.startswith("The")
    assert program(script, "--help") == program(sys.executable, "-m", "gpt2core", "--help")


def test_exit_codes_of_the_program(models: Path) -> None:
    code, out, err = program(sys.executable, "-m", "gpt2core", "generate", models / "none")
    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert "Traceback" not in err
    code, out, err = program(sys.executable, "-m", "gpt2core", "generate")
    assert (code, out) == (2, "")
    assert "Usage: " in err


def test_help_is_quick() -> None:
    """It imports no torch."""
    code = "import sys; sys.argv = ['gpt2core', '--help']; import gpt2core.cli as c\ntry: c.main()\n"
    code += "except SystemExit: print([m for m in ('torch', 'mlflow', 'pandas') if m in sys.modules])"
    _, out, _ = program(sys.executable, "-c", code)
    assert out.strip().endswith("[]")
