"""The Alpaca prompt (Taori et al. 2023, Stanford Alpaca): an instruction, at times an input, and where to answer."""

from __future__ import annotations

WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
WITHOUT_INPUT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)


def alpaca(instruction: str, input: str = "") -> str:
    """The prompt of one entry; the response follows it directly.

    >>> alpaca("Name a colour.").endswith("### Instruction:\\nName a colour.\\n\\n### Response:\\n")
    True
    """
    if input:
        return WITH_INPUT.format(instruction=instruction, input=input)
    return WITHOUT_INPUT.format(instruction=instruction)


def chat_template() -> str:
    """The same prompt as a Jinja chat template: a user's message is the instruction, a system message its input."""

    def jinja(prompt: str) -> str:
        return prompt.replace("{instruction}", "{{ user.content }}").replace("{input}", "{{ system.content }}")

    return (
        "{%- set user = (messages | selectattr('role', 'equalto', 'user') | list | last) -%}"
        "{%- set system = (messages | selectattr('role', 'equalto', 'system') | list | first) -%}"
        f"{{% if system %}}{jinja(WITH_INPUT)}{{% else %}}{jinja(WITHOUT_INPUT)}{{% endif %}}"
    )
