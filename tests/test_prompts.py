"""The Alpaca prompt, letter by letter as Stanford published it."""

from __future__ import annotations

import pytest

from gpt2core import prompts

WITH_INPUT = """\
Below is an instruction that describes a task, paired with an input that provides further context. \
Write a response that appropriately completes the request.

### Instruction:
Sort these numbers.

### Input:
3, 1, 2

### Response:
"""
WITHOUT_INPUT = """\
Below is an instruction that describes a task. Write a response that appropriately completes the request.

### Instruction:
Name a colour.

### Response:
"""


def test_with_an_input() -> None:
    assert prompts.alpaca("Sort these numbers.", "3, 1, 2") == WITH_INPUT


def test_without_an_input() -> None:
    assert prompts.alpaca("Name a colour.") == prompts.alpaca("Name a colour.", "") == WITHOUT_INPUT


@pytest.mark.parametrize("text", ["{input}", "{}", "{instruction!r}", "a { b", "{{ user.content }}", "100% {0}"])
def test_braces_are_text(text: str) -> None:
    assert f"### Instruction:\n{text}\n\n### Input:\n{text}\n\n### Response:\n" in prompts.alpaca(text, text)


@pytest.mark.parametrize(
    ("instruction", "input_text"),
    [("Sort these numbers.", "3, 1, 2"), ("Name a colour.", ""), ("Quote <b>&amp;</b> {braces}", "two\nlines  ")],
)
def test_the_chat_template_renders_the_same_prompt(instruction: str, input_text: str) -> None:
    """Rendered as transformers does: a sandbox, and blocks that leave no white space."""
    sandbox = pytest.importorskip("jinja2.sandbox")
    environment = sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    messages = [{"role": "user", "content": instruction}]
    if input_text:
        messages.insert(0, {"role": "system", "content": input_text})
    rendered = environment.from_string(prompts.chat_template()).render(messages=messages)
    assert rendered == prompts.alpaca(instruction, input_text)


def test_the_chat_template_answers_the_last_question() -> None:
    sandbox = pytest.importorskip("jinja2.sandbox")
    environment = sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    messages = [
        {"role": "user", "content": "Name a river."},
        {"role": "assistant", "content": "The Oder."},
        {"role": "user", "content": "Name a colour."},
    ]
    assert environment.from_string(prompts.chat_template()).render(messages=messages) == WITHOUT_INPUT
