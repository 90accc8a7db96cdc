"""Batches of a language model's work on the Ray cluster of `GPT2CORE_RAY`, or without it in this process.

Only the path of a model directory and the batches cross to other processes; each of them loads the model once.
"""

from __future__ import annotations

import contextlib
import functools
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from gpt2core import config, runtime
from gpt2core.checkpoint.model_dir import load_language_model, save_model
from gpt2core.executor import Executor, OnReport, cluster_address, ignore, open_executor
from gpt2core.inference.batches import Batches
from gpt2core.model import GPT
from gpt2core.model.inference import Packed, pack
from gpt2core.model.lora import LoRALinear
from gpt2core.model.quantized import QuantizedLinear
from gpt2core.tokenizer import Tokenizer


class _ClusterBatches(Batches):
    """The same batches, several at a time, each in a process that has loaded the model from its directory."""

    def __init__(
        self, model: Packed, tokenizer: Tokenizer, executor: Executor, model_dir: Path, dtype: str | None
    ) -> None:
        super().__init__(model, tokenizer)
        self._executor, self._model_dir, self._dtype = executor, str(model_dir.absolute()), dtype

    def map(
        self, function: Callable[..., Any], batches: Iterable[Sequence[Any]], on_report: OnReport = ignore
    ) -> Iterator[Any]:
        """See `Batches`."""
        name = f"{function.__module__}:{function.__qualname__}"
        tasks = ([name, self._model_dir, self._dtype, list(batch)] for batch in batches)
        return self._executor.map(_compute, tasks, on_report)


@contextlib.contextmanager
def batches_of_directory(
    model_dir: Path, model: Packed, tokenizer: Tokenizer, dtype: str | None = None
) -> Iterator[Batches]:
    """Yield what computes batches with the model that was loaded from `model_dir`.

    Args:
        model_dir: on a cluster, at the same path on every node.
        model: the same model in this process, for work without a cluster.
        tokenizer: of the model.
        dtype: for which `model` was packed; None if it was not.

    Raises:
        UserError: as `open_executor`.
    """
    if not cluster_address():
        yield Batches(model, tokenizer)
        return
    with open_executor(with_model=True) as executor:
        yield _ClusterBatches(model, tokenizer, executor, model_dir, dtype)


@contextlib.contextmanager
def batches_of_weights(model: GPT, tokenizer: Tokenizer) -> Iterator[Batches]:
    """Yield what computes batches with a model in memory; on a cluster, it is saved to the project's folder meanwhile.

    A model with adapters or with quantized weights computes in this process: no directory gives the same one.
    """
    is_plain = not any(isinstance(module, LoRALinear | QuantizedLinear) for module in model.modules())
    if not (cluster_address() and is_plain):
        yield Batches(model, tokenizer)
        return
    parent = config.project_root() / ".checkpoints"
    parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".weights-", dir=parent) as folder:
        save_model(Path(folder, "model"), model, tokenizer)
        with batches_of_directory(Path(folder, "model"), model, tokenizer) as batches:
            yield batches


def _compute(function: str, model_dir: str, dtype: str | None, batch: Sequence[Any]) -> Any:
    """Compute a batch in a process of the cluster."""
    module, _, name = function.partition(":")
    return getattr(import_module(module), name)(*_loaded(model_dir, dtype), *batch)


@functools.lru_cache(maxsize=1)
def _loaded(model_dir: str, dtype: str | None) -> tuple[Packed, Tokenizer]:
    model, tokenizer = load_language_model(model_dir, device=runtime.device())
    return (pack(model, dtype) if dtype else model), tokenizer
