"""`gpt2core generate`: stops, samples, prompts from files, and text as it comes on a terminal."""

from __future__ import annotations

import io
import json
import os
import pty
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import Tensor

import gpt2core
from gpt2core import inference as engine
from gpt2core.log import escaped
from tests.cli.test_cli import Ended, Run, models, refused, run

__all__ = ["models", "run"]  # fixtures

GREEDY = ("--prompt", "The lamp", "--max-new-tokens", "40", "--temperature", "0")


def continuation(run: Run, *arguments: str | Path) -> str:
    ended = run("generate", *arguments)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith("The lamp")
    return ended.out.removeprefix("The lamp").removesuffix("\n")


# -- Where it ends ---------------------------------------------------------------------------------------------------


def test_it_ends_before_the_first_of_the_stop_texts(run: Run, models: Path) -> None:
    whole = continuation(run, models / "lm", *GREEDY)
    near, far = whole[9:12], whole[20:24]
    stops = ("--stop", far, "--stop", near, "--stop", "not in it")
    assert continuation(run, models / "lm", *GREEDY, *stops) == whole.partition(near)[0]
    assert continuation(run, models / "lm", *GREEDY, "--stop", "not in it") == whole
    value = json.loads(run("generate", models / "lm", *GREEDY, *stops, "--json").out)
    assert value["text"] == whole.partition(near)[0]
    assert value["new_tokens"] < 40


def test_an_empty_stop_text_is_refused(run: Run, models: Path) -> None:
    refused(run("generate", models / "lm", "--stop", ""), 1, "stop string is empty")


def test_with_and_without_guesses_the_text_is_the_same(run: Run, models: Path) -> None:
    """Also where a stop text or the limit comes in the middle of a pass."""
    for options in (("--stop", "a"), ("--max-new-tokens", "7"), ("--repetition-penalty", "1.1"), ("--stream",)):
        with_guesses = continuation(run, models / "lm", *GREEDY, *options)
        assert continuation(run, models / "lm", *GREEDY, *options, "--no-lookup") == with_guesses


# -- How it draws ----------------------------------------------------------------------------------------------------


def test_every_option_of_sampling_reaches_the_engine(run: Run, models: Path) -> None:
    model, tokenizer = gpt2core.load(models / "lm")
    values = {"temperature": 1.5, "top_k": 200, "top_p": 0.97, "min_p": 0.001, "repetition_penalty": 1.6}
    flags = [word for name, value in values.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    ids = tokenizer.encode("The lamp")
    (new,) = engine.generate_batch(
        model, [ids], 40, eos_id=tokenizer.eot_id, sampling=engine.Sampling(**values), seed=5
    )
    arguments = ("--prompt", "The lamp", "--max-new-tokens", "40", "--seed", "5")
    assert continuation(run, models / "lm", *arguments, *flags) == tokenizer.decode(new)
    for left_out in range(0, len(flags), 2):  # and none of them is without effect, but for the narrowest
        fewer = flags[:left_out] + flags[left_out + 2 :]
        if flags[left_out] in ("--temperature", "--repetition-penalty"):
            assert continuation(run, models / "lm", *arguments, *fewer) != tokenizer.decode(new)


def test_samples_draw_with_consecutive_seeds(run: Run, models: Path) -> None:
    arguments = ("--prompt", "The lamp", "--max-new-tokens", "20", "--temperature", "2")
    ended = run("generate", models / "lm", *arguments, "--seed", "7", "--num-samples", "3", "--json")
    assert ended.code == 0
    samples = [json.loads(line) for line in ended.out.splitlines()]
    alone = [
        json.loads(run("generate", models / "lm", *arguments, "--seed", seed, "--json").out) for seed in ("7", "8", "9")
    ]
    assert samples == alone
    assert [sample["seed"] for sample in samples] == [7, 8, 9]
    assert len({sample["text"] for sample in samples}) == 3

    plain = run("generate", models / "lm", *arguments, "--seed", "7", "--num-samples", "3")
    assert plain.out == "\n".join(f"--- seed {s['seed']} ---\n{s['prompt']}{s['text']}\n" for s in samples)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--top-p", "0"),
        ("--min-p", "1.1"),
        ("--repetition-penalty", "0"),
        ("--num-samples", "0"),
        ("--stream", "--json"),
        ("--stream", "--num-samples", "2"),
        ("--prompt", "a", "--prompt-file", "-"),
        ("--prompt-file", "no/such/file"),
    ],
    ids=" ".join,
)
def test_wrong_usage_ends_with_2(run: Run, models: Path, arguments: tuple[str, ...]) -> None:
    refused(run("generate", models / "lm", *arguments), 2, "Usage: ", arguments[-2 if arguments[-1][0] != "-" else 0])


# -- Where the prompt comes from -------------------------------------------------------------------------------------


@pytest.mark.parametrize("line_break", ["", "\n", "\r\n"])
def test_the_prompt_may_lie_in_a_file_or_come_from_standard_input(
    run: Run, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line_break: str
) -> None:
    prompt, rest = "The lamp\nwas “lit”.", ("--max-new-tokens", "8", "--temperature", "0")
    expected = run("generate", models / "lm", "--prompt", prompt, *rest)
    file = tmp_path / "prompt.txt"
    file.write_bytes((prompt + line_break).encode())
    assert run("generate", models / "lm", "--prompt-file", file, *rest) == expected
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(file.read_bytes()), encoding="ascii"))
    assert run("generate", models / "lm", "--prompt-file", "-", *rest) == expected


def test_a_prompt_that_is_not_utf8_is_refused(run: Run, models: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompt.txt"
    file.write_bytes(b"caf\xe9 au lait")
    refused(run("generate", models / "lm", "--prompt-file", file), 1, str(file), "byte 3", "UTF-8")


# -- As it comes, and Ctrl-C -----------------------------------------------------------------------------------------


def test_streamed_or_not_the_text_is_the_same(run: Run, models: Path) -> None:
    for options in (GREEDY, ("--prompt", "The", "--temperature", "3", "--seed", "4"), (*GREEDY, "--stop", "a")):
        assert run("generate", models / "lm", *options, "--stream") == run("generate", models / "lm", *options)


@pytest.mark.parametrize("options", [(), ("--stream",), ("--json",), ("--json", "--num-samples", "2")], ids=" ".join)
def test_ctrl_c_keeps_what_came_so_far(
    run: Run, models: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    complete = engine.stream

    def interrupted(*arguments: object, **others: object) -> Iterator[Tensor]:
        for n, column in enumerate(complete(*arguments, **others)):
            if n == 6:
                raise KeyboardInterrupt
            yield column

    expected = run("generate", models / "lm", *GREEDY, "--max-new-tokens", "6", *options)
    monkeypatch.setattr(engine, "stream", interrupted)
    assert run("generate", models / "lm", *GREEDY, *options) == Ended(130, expected.out, "")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_the_model_loads(tmp_path: Path, number: int, code: int) -> None:
    """The library that reads the weights is replaced by one that waits: we know that it loads."""
    (tmp_path / "safetensors.py").write_text("import time\nprint('loading', flush=True)\ntime.sleep(60)\n")
    process = subprocess.Popen(
        [sys.executable, "-m", "gpt2core", "generate", tmp_path],
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[2]}"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "loading\n"
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, out, err.split()) == (code, "", ["interrupted" if code == 130 else "terminated"])


def test_a_terminal_shows_the_text_while_it_comes_until_ctrl_c(models: Path) -> None:
    """A real process on a real pseudo-terminal, which would go on for hours."""
    terminal, of_process = pty.openpty()
    settings = termios.tcgetattr(of_process)
    settings[1] &= ~termios.OPOST  # \n stays \n
    settings[3] &= ~termios.ECHO  # Ctrl-C is not shown
    termios.tcsetattr(of_process, termios.TCSANOW, settings)

    def at_the_terminal() -> None:
        os.login_tty(of_process)
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs begin with Ctrl-C ignored

    process = subprocess.Popen(
        [sys.executable, "-m", "gpt2core", "generate", models / "lm", *GREEDY, "--max-new-tokens", "1000000"],
        preexec_fn=at_the_terminal,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"},
    )
    os.close(of_process)
    try:
        shown = b""
        while len(shown) < 60:
            shown += os.read(terminal, 1000)
        assert process.poll() is None
        os.write(terminal, b"\x03")
        shown += b"".join(until_closed(terminal))
        assert process.wait(timeout=60) == 130
    finally:
        process.kill()
        process.wait()
        os.close(terminal)
    assert shown.endswith(b"\n")
    shown_text = shown.decode()[:-1]  # raises if half a character was shown

    complete = shown_text.rstrip("\ufffd")  # the bytes of a character that Ctrl-C left unfinished
    model, tokenizer = gpt2core.load(models / "lm")
    ids, text = tokenizer.encode("The lamp"), ""
    for column in engine.stream(model, [ids], 1_000_000):
        ids.append(column.item())
        text = escaped(tokenizer.decode(ids))
        if len(text) > len(complete) + 4:
            break
    assert text.startswith(complete)


def until_closed(terminal: int) -> Iterator[bytes]:
    try:
        while piece := os.read(terminal, 4096):
            yield piece
    except OSError:  # Linux says EIO when the last process has closed its side
        return


def test_samples_beyond_a_batch_are_those_of_their_seeds(
    run: Run, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ("--prompt", "The lamp", "--max-new-tokens", "8", "--num-samples", "5", "--json")
    together = run("generate", models / "lm", *flags).out
    monkeypatch.setattr(sys.modules["gpt2core.cli.generate"], "SAMPLES_PER_BATCH", 2)
    assert run("generate", models / "lm", *flags).out == together
