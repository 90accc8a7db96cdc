"""The prompts of instruction-tuned models: an instruction, at times an input, and where to answer.

A model's directory keeps its prompt as a chat template, by which it is known again (`of_chat_template`).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Prompt:
    """A form with places for `{instruction}` and `{input}`; the response follows it directly."""

    with_input: str
    without_input: str

    def __call__(self, instruction: str, input: str = "") -> str:
        """Return the prompt of one entry."""
        if input:
            return self.with_input.format(instruction=instruction, input=input)
        return self.without_input.format(instruction=instruction)


# Taori et al. 2023, Stanford Alpaca.
alpaca = Prompt(
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n",
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n",
)
# Abdin et al. 2024, Phi-3: less than half of Alpaca's tokens. To a GPT-2 the marks are plain text.
phi3 = Prompt(
    "<|user|>\n{instruction}\n{input}<|end|>\n<|assistant|>\n",
    "<|user|>\n{instruction}<|end|>\n<|assistant|>\n",
)
PROMPTS = {"alpaca": alpaca, "phi3": phi3}


def chat_template(prompt: Prompt = alpaca) -> str:
    """Return the prompt as a Jinja chat template.

    A user's message is an instruction, the system message before it its input, and the assistant's message the
    response, which `<|endoftext|>` ends. So a conversation starts with its prompt, and trainers see what to learn.
    """

    def jinja(form: str) -> str:
        return form.replace("{instruction}", "{{ message.content }}").replace("{input}", "{{ turn.input }}")

    return (
        "{%- set turn = namespace(input='') -%}"
        "{%- for message in messages -%}"
        "{%- if message.role == 'system' -%}{%- set turn.input = message.content -%}"
        "{%- elif message.role == 'assistant' -%}{{ message.content }}{{ eos_token }}"
        f"{{%- elif turn.input -%}}{jinja(prompt.with_input)}{{% set turn.input = '' %}}"
        f"{{% else %}}{jinja(prompt.without_input)}{{% endif %}}"
        "{% endfor %}"
    )


def _template_without_answers(prompt: Prompt) -> str:
    """Return the chat template of older model directories, which left out the assistant's messages."""

    def jinja(form: str) -> str:
        return form.replace("{instruction}", "{{ user.content }}").replace("{input}", "{{ system.content }}")

    return (
        "{%- set user = (messages | selectattr('role', 'equalto', 'user') | list | last) -%}"
        "{%- set system = (messages | selectattr('role', 'equalto', 'system') | list | first) -%}"
        f"{{% if system %}}{jinja(prompt.with_input)}{{% else %}}{jinja(prompt.without_input)}{{% endif %}}"
    )


def of_chat_template(template: object) -> Prompt | None:
    """Return the prompt with this chat template, or None.

    >>> of_chat_template(chat_template(phi3)) is phi3
    True
    """
    forms = (chat_template, _template_without_answers)
    return next((prompt for prompt in PROMPTS.values() for form in forms if form(prompt) == template), None)
