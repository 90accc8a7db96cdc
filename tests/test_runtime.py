"""What `auto` chooses, and that it says why."""

from __future__ import annotations

import io
import shutil
import sys

import pytest
import torch

from gpt2core import runtime


@pytest.mark.parametrize(("has_it", "name"), [(True, "bfloat16"), (False, "float32")])
def test_auto_takes_bfloat16_where_the_cpu_computes_in_it(
    has_it: bool, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_it)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    assert runtime.training_dtype("auto") is getattr(torch, name)
    verb = "has" if has_it else "has no"
    assert capsys.readouterr().err == f"dtype: {name} (auto: this CPU {verb} bfloat16 arithmetic)\n"


def test_an_explicit_dtype_is_taken_in_silence(capsys: pytest.CaptureFixture[str]) -> None:
    assert runtime.training_dtype("bfloat16") is torch.bfloat16
    assert runtime.training_dtype("float32") is torch.float32
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("max_steps", "compiler", "chosen", "said"),
    [
        (100, "/bin/g++", False, "compile: false (auto: 100 steps do not repay a minute of compiling; 500 would)\n"),
        (500, "/bin/g++", True, "compile: true (auto: compiler /bin/g++)\n"),
        (500, None, False, "compile: false (auto: no C++ compiler; install g++)\n"),
    ],
)
def test_auto_compiles_where_it_can_and_where_it_pays(
    max_steps: int, compiler: str | None, chosen: bool, said: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: compiler if name == "g++" else None)
    assert runtime.should_compile("auto", max_steps) is chosen
    assert capsys.readouterr().err == said
    assert runtime.should_compile(True, max_steps) is True
    assert runtime.should_compile(False, max_steps) is False
    assert capsys.readouterr().err == ""


class Terminal(io.StringIO):
    """Standard error as a person sees it."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "after_s", "rank", "shown"),
    [
        (Terminal(), 0, "0", True),
        (Terminal(), 60, "0", False),
        (Terminal(), 0, "1", False),
        (io.StringIO(), 0, "0", False),
    ],
    ids=["a terminal", "soon done", "not the first process", "a file"],
)
def test_progress_is_shown_on_a_terminal_for_what_takes_long(
    monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, after_s: float, rank: str, shown: bool
) -> None:
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(runtime, "BAR_AFTER_S", after_s)
    monkeypatch.setenv("RANK", rank)
    assert list(runtime.progress(range(3), what="read", unit="tensor")) == [0, 1, 2]
    assert ("read" in stream.getvalue()) == shown
    if not shown:
        assert stream.getvalue() == ""


def test_the_environment_names_the_device_that_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPT2CORE_DEVICE", "cpu")
    assert runtime.environment()["device"] == "cpu"
