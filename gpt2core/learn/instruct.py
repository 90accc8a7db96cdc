"""Instructions as training examples: only the response has targets, and rows of unequal length share a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

from gpt2core import prompts
from gpt2core.learn.dataset import Encoder

IGNORE = -100  # cross_entropy skips such targets
Example = tuple[list[int], list[int]]


def instruction_example(entry: Mapping[str, str], tokenizer: Encoder, eot_id: int) -> Example:
    """Return ids of prompt and response, and for each position the next id, or -100 within the prompt."""
    prompt = tokenizer.encode(prompts.alpaca(entry["instruction"], entry["input"]))
    ids = [*prompt, *tokenizer.encode(entry["output"]), eot_id]
    targets = [IGNORE] * (len(prompt) - 1) + ids[len(prompt) :]
    return ids[:-1], targets


def instruction_batch(examples: Sequence[Example], pad_id: int) -> tuple[Tensor, Tensor]:
    """Pad examples on the right to the longest: ids [B, T] and targets [B, T], -100 over the padding."""
    longest = max(len(ids) for ids, _ in examples)
    inputs = [ids + [pad_id] * (longest - len(ids)) for ids, _ in examples]
    targets = [next_ids + [IGNORE] * (longest - len(next_ids)) for _, next_ids in examples]
    return torch.tensor(inputs), torch.tensor(targets)


def format_input(entry: Mapping[str, str]) -> str:
    """Return the prompt up to the input; unlike Alpaca's own, it starts with the same sentences with an input.

    >>> print(format_input({"instruction": "Add.", "input": "1 2", "output": "3"}).partition(". ")[2])
    Write a response that appropriately completes the request.
    <BLANKLINE>
    ### Instruction:
    Add.
    <BLANKLINE>
    ### Input:
    1 2
    """
    prompt = (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        f"\n\n### Instruction:\n{entry['instruction']}"
    )
    return prompt + f"\n\n### Input:\n{entry['input']}" if entry["input"] else prompt


class InstructionDataset(Dataset[list[int]]):
    """Entries as ids of prompt and response in one, of unequal length, for `custom_collate_fn`.

    Args:
        data: entries with instruction, input (perhaps empty), and output.
        tokenizer: encodes the texts.
    """

    def __init__(self, data: Sequence[Mapping[str, str]], tokenizer: Encoder):
        self.data = data
        self.encoded_texts = [
            tokenizer.encode(f"{format_input(entry)}\n\n### Response:\n{entry['output']}") for entry in data
        ]

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> list[int]:
        """Return the ids of entry number `index`."""
        return self.encoded_texts[index]


def custom_collate_fn(
    batch: Sequence[list[int]],
    pad_token_id: int = 50256,
    ignore_index: int = IGNORE,
    allowed_max_length: int | None = None,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor]:
    """Pad texts to the longest: ids [B, T] and next ids [B, T]. The prompt has targets too, unlike `instruction_batch`.

    >>> custom_collate_fn([[0, 1, 2], [3]])[1]
    tensor([[    1,     2, 50256],
            [50256,  -100,  -100]])
    """
    longest = max(map(len, batch))
    inputs = torch.tensor([ids + [pad_token_id] * (longest - len(ids)) for ids in batch])
    # One target after the text is the end of the text; the rest of the padding does not count.
    targets = torch.tensor([[*ids[1:], pad_token_id] + [ignore_index] * (longest - len(ids)) for ids in batch])
    return inputs[:, :allowed_max_length].to(device), targets[:, :allowed_max_length].to(device)
