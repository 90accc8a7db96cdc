"""The Alpaca prompt, letter by letter as Stanford published it, and Phi-3's as Microsoft did."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from gpt2core import prompts

ROOT = Path(__file__).parent.parent
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


def test_phi3() -> None:
    assert prompts.phi3("Name a colour.") == "<|user|>\nName a colour.<|end|>\n<|assistant|>\n"
    expected = "<|user|>\nSort these numbers.\n3, 1, 2<|end|>\n<|assistant|>\n"
    assert prompts.phi3("Sort these numbers.", "3, 1, 2") == expected


def test_a_prompt_is_known_by_its_chat_template() -> None:
    for prompt in prompts.PROMPTS.values():
        assert prompts.of_chat_template(prompts.chat_template(prompt)) is prompt
    for other in (None, "", "{{ messages[0].content }}", prompts.chat_template() + " "):
        assert prompts.of_chat_template(other) is None


def render(messages: list[dict[str, str]], prompt: prompts.Prompt = prompts.alpaca) -> str:
    """As transformers does it: in a sandbox, with blocks that leave no white space."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(prompts.chat_template(prompt)).render(messages=messages, eos_token="<|endoftext|>")


@pytest.mark.parametrize("prompt", prompts.PROMPTS.values(), ids=prompts.PROMPTS)
@pytest.mark.parametrize(
    ("instruction", "input_text"),
    [("Sort these numbers.", "3, 1, 2"), ("Name a colour.", ""), ("Quote <b>&amp;</b> {braces}", "two\nlines  ")],
)
def test_the_chat_template_renders_the_same_prompt(instruction: str, input_text: str, prompt: prompts.Prompt) -> None:
    messages = [{"role": "user", "content": instruction}]
    if input_text:
        messages.insert(0, {"role": "system", "content": input_text})
    assert render(messages, prompt) == prompt(instruction, input_text)


def test_the_chat_template_has_every_turn() -> None:
    messages = [
        {"role": "user", "content": "Name a river."},
        {"role": "assistant", "content": "The Oder."},
        {"role": "user", "content": "Name a colour."},
    ]
    first = WITHOUT_INPUT.replace("Name a colour.", "Name a river.")
    assert render(messages) == f"{first}The Oder.<|endoftext|>{WITHOUT_INPUT}"


def test_an_input_belongs_to_the_next_question_only() -> None:
    messages = [
        {"role": "system", "content": "3, 1, 2"},
        {"role": "user", "content": "Sort these numbers."},
        {"role": "assistant", "content": "1, 2, 3"},
        {"role": "user", "content": "Name a colour."},
    ]
    assert render(messages) == f"{WITH_INPUT}1, 2, 3<|endoftext|>{WITHOUT_INPUT}"


def test_older_directories_are_known_by_their_template() -> None:
    older = (ROOT / "tests/checkpoint/older/instruct/tokenizer_config.json").read_text(encoding="utf-8")
    assert prompts.of_chat_template(json.loads(older)["chat_template"]) is prompts.alpaca
