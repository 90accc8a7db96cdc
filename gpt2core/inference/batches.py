"""Batches of a language model's work, computed in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from gpt2core.executor import LocalProcesses, OnReport, ignore
from gpt2core.model.inference import Packed
from gpt2core.tokenizer import Tokenizer


class Batches:
    """A language model that computes batches one after another in this process.

    Another class computes the same batches on a Ray cluster, see `gpt2core.checkpoint.cluster`. Batches are cut before
    they are distributed, so that both give the same bytes.
    """

    def __init__(self, model: Packed, tokenizer: Tokenizer) -> None:
        self.model, self.tokenizer = model, tokenizer

    def map(
        self, function: Callable[..., Any], batches: Iterable[Sequence[Any]], on_report: OnReport = ignore
    ) -> Iterator[Any]:
        """Yield `function(model, tokenizer, *batch)` for each batch, in order.

        Args:
            function: of a module, which another process can import.
            batches: arguments of each call; they and the results are values of JSON.
            on_report: called with what the function reports, see `gpt2core.executor.report`.
        """
        return LocalProcesses(1).map(partial(function, self.model, self.tokenizer), batches, on_report)
